//! Running hooks on the host: one after the other, the container's state on standard input.

use std::{io, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time,
};

use crate::plan::PlacedHook;

/// How much of what a hook says is kept for its error.
const SAID: u64 = 2048;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// It could not be started.
    #[error("{field}: start {path}: {source}")]
    Start {
        /// The hook.
        field: String,
        /// Its program.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It ended with another code than 0.
    #[error("{field}: {status}: {said}")]
    Status {
        /// The hook.
        field: String,
        /// As Go says it: runc's users know the words.
        status: String,
        /// The beginning of its standard error.
        said: String,
    },
    /// It was ended after its timeout.
    #[error("{field}: it ran past its timeout of {seconds} s")]
    Timeout {
        /// The hook.
        field: String,
        /// The specification's.
        seconds: i64,
    },
    /// It could not be waited for.
    #[error("{field}: wait for it: {source}")]
    Wait {
        /// The hook.
        field: String,
        /// Why.
        source: io::Error,
    },
}

/// Runs hooks until one fails.
pub(crate) async fn run(
    hooks: &[PlacedHook],
    bundle: &Path,
    state: &[u8],
) -> Result<(), HookError> {
    for hook in hooks {
        run_one(hook, bundle, state).await?;
    }
    Ok(())
}

/// Runs every hook; failures are logged and change nothing (runtime.md, Lifecycle, poststop).
pub(crate) async fn run_all(hooks: &[PlacedHook], bundle: &Path, state: &[u8]) {
    for hook in hooks {
        if let Err(error) = run_one(hook, bundle, state).await {
            tracing::warn!(%error, "a hook failed");
        }
    }
}

async fn run_one(placed: &PlacedHook, bundle: &Path, state: &[u8]) -> Result<(), HookError> {
    let PlacedHook { field, hook } = placed;
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear();
    for variable in hook.env().iter().flatten() {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    let child = command
        .current_dir(bundle)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A group of its own, so that its children end with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|source| HookError::Start {
        field: field.clone(),
        path: hook.path().display().to_string(),
        source,
    })?;
    let ended = match hook.timeout() {
        Some(seconds) => {
            let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            match time::timeout(limit, converse(&mut child, state)).await {
                Ok(ended) => ended,
                Err(_) => {
                    end(&mut child).await;
                    return Err(HookError::Timeout {
                        field: field.clone(),
                        seconds,
                    });
                }
            }
        }
        None => converse(&mut child, state).await,
    };
    let (status, said) = ended.map_err(|source| HookError::Wait {
        field: field.clone(),
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    Err(HookError::Status {
        field: field.clone(),
        status: match status.code() {
            Some(code) => format!("exit status {code}"),
            None => status.to_string(),
        },
        said: said.trim().to_owned(),
    })
}

/// Feeds it the state and hears it out. A hook that reads nothing is no error.
async fn converse(
    child: &mut Child,
    state: &[u8],
) -> io::Result<(std::process::ExitStatus, String)> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(state).await;
        }
    };
    let hear = async {
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            let mut stderr = stderr.take(SAID);
            let _ = stderr.read_to_end(&mut said).await;
            // It must not block because nobody reads on.
            let _ = tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await;
        }
        String::from_utf8_lossy(&said).into_owned()
    };
    let ((), said) = tokio::join!(feed, hear);
    Ok((child.wait().await?, said))
}

async fn end(child: &mut Child) {
    if let Some(group) = child.id().and_then(|pid| i32::try_from(pid).ok())
        && let Some(group) = rustix::process::Pid::from_raw(group)
    {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.wait().await;
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Hook;
    use serde_json::json;

    use super::*;

    fn shell(script: &str, timeout: Option<i64>) -> PlacedHook {
        let hook = json!({"path": "/bin/sh", "args": ["hook", "-c", script], "env": ["A=b c"], "timeout": timeout});
        PlacedHook {
            field: "hooks.prestart[0]".to_owned(),
            hook: serde_json::from_value::<Hook>(hook).unwrap(),
        }
    }

    #[tokio::test]
    async fn state_environment_and_directory_reach_it() {
        let bundle = tempfile::tempdir().unwrap();
        let script = "{ cat; echo; echo \"$A $PWD\"; } > told";
        run(&[shell(script, None)], bundle.path(), b"state")
            .await
            .unwrap();
        let told = std::fs::read_to_string(bundle.path().join("told")).unwrap();
        let directory = bundle.path().canonicalize().unwrap();
        assert_eq!(told, format!("state\nb c {}\n", directory.display()));
    }

    #[tokio::test]
    async fn the_first_failure_ends_them_and_says_why() {
        let bundle = tempfile::tempdir().unwrap();
        let hooks = [
            shell("echo no good >&2; exit 3", Some(60)),
            shell("touch ran", None),
        ];
        let error = run(&hooks, bundle.path(), b"{}")
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(error, "hooks.prestart[0]: exit status 3: no good");
        assert!(!bundle.path().join("ran").exists());
        run_all(&hooks, bundle.path(), b"{}").await;
        assert!(bundle.path().join("ran").exists());
    }

    #[tokio::test]
    async fn a_hook_that_does_not_end_is_ended_with_its_children() {
        let bundle = tempfile::tempdir().unwrap();
        let hooks = [shell("sleep 1000 & echo $! > child; wait", Some(1))];
        let error = run(&hooks, bundle.path(), &[b'x'; 1 << 20])
            .await
            .unwrap_err();
        assert!(
            matches!(error, HookError::Timeout { seconds: 1, .. }),
            "{error}"
        );
        let child = std::fs::read_to_string(bundle.path().join("child")).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        // Gone, or a zombie that its new parent has not reaped yet.
        let gone = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        for _ in 0..500 {
            if gone() {
                return;
            }
            time::sleep(Duration::from_millis(10)).await;
        }
        panic!("process {child} lives on");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let mut hook = shell("", None);
        hook.hook.set_path("/no/such".into());
        let error = run(&[hook], Path::new("/"), b"")
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("hooks.prestart[0]: start /no/such: "),
            "{error}"
        );
    }
}
