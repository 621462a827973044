//! Hooks that run in the container: createContainer once its root is entered, startContainer right before
//! its command.
//!
//! The guest has no programs but the agent, so the path of createContainer is the container's too. Both run
//! with no more rights than the container: createContainer as its root user, startContainer as its user.

use std::{
    ffi::CString,
    fs::File,
    io::Write as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, execve, setpgid},
};
use oci_spec::runtime::{Hook, Process, Spec};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Map, Value, json};

use super::{InitError, act, user};
use crate::sys::{
    errno_words,
    fork::{NewNamespaces, Side, fork_into},
};

/// How often a hook's end is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// The hooks of a container that its init runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Hooks {
    pub create: Vec<Hook>,
    pub start: Vec<Hook>,
    state: Map<String, Value>,
}

impl Hooks {
    /// Those of a specification. `pid` is the init's in the guest.
    pub(super) fn of(spec: &Spec, pid: i32) -> Self {
        let Some(hooks) = spec.hooks() else {
            return Self::default();
        };
        let bundle = spec.root().as_ref().and_then(|root| root.path().parent());
        let id = bundle.and_then(|path| path.file_name()).unwrap_or_default();
        let state = json!({
            "ociVersion": spec.version(), "id": id.to_string_lossy(), "pid": pid, "bundle": bundle,
            "annotations": spec.annotations(),
        });
        Self {
            create: hooks.create_container().clone().unwrap_or_default(),
            start: hooks.start_container().clone().unwrap_or_default(),
            state: state.as_object().cloned().unwrap_or_default(),
        }
    }

    fn state(&self, status: &str) -> Vec<u8> {
        let mut state = self.state.clone();
        state.insert("status".to_owned(), status.into());
        Value::Object(state).to_string().into_bytes()
    }

    /// Runs createContainer, as root with the container's capabilities.
    pub(super) fn run_create(&self, process: &Process) -> Result<(), InitError> {
        let mut root = process.clone();
        root.user_mut()
            .set_uid(0)
            .set_gid(0)
            .set_additional_gids(None);
        let state = self.state("creating");
        for (index, hook) in self.create.iter().enumerate() {
            let field = format!("hooks.createContainer[{index}]");
            run(&field, hook, &state, || user::become_user(&root))?;
        }
        Ok(())
    }

    /// Runs startContainer, as who the caller is.
    pub(super) fn run_start(&self) -> Result<(), InitError> {
        let state = self.state("created");
        for (index, hook) in self.start.iter().enumerate() {
            let field = format!("hooks.startContainer[{index}]");
            run(&field, hook, &state, || Ok(()))?;
        }
        Ok(())
    }
}

fn run(
    field: &str,
    hook: &Hook,
    state: &[u8],
    become_who: impl FnOnce() -> Result<(), InitError>,
) -> Result<(), InitError> {
    let doing = || format!("{field}: run {:?}", hook.path());
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| act(e, doing))?;
    let side = fork_into(None, NewNamespaces::default()).map_err(|e| act(e, doing))?;
    let Side::Parent { child } = side else {
        // Its own copy of everything: from here to exec or exit.
        std::process::exit(execute(hook, read, become_who));
    };
    drop(read);
    let pid = Pid::from_raw(child);
    let began = Instant::now();
    // The state is shorter than a pipe holds unless its annotations are not; then a hook that does not
    // read would block us for ever, so it is fed without waiting.
    rustix::io::ioctl_fionbio(&write, true).map_err(|e| act(e, doing))?;
    let mut write = Some(File::from(write));
    let mut rest = state;
    let limit = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok());
    loop {
        if let Some(pipe) = &mut write {
            match pipe.write(rest) {
                Ok(length) => rest = rest.get(length..).unwrap_or_default(),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => rest = &[],
            }
            if rest.is_empty() {
                write = None;
            }
        }
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, code)) => {
                return Err(failed(field, &format!("exit status {code}")));
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Err(failed(field, &format!("signal: {signal}")));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(act(e, doing)),
        }
        if limit.is_some_and(|seconds| began.elapsed() > Duration::from_secs(seconds)) {
            // The group, then it alone if it did not come to have one.
            let _ = kill(Pid::from_raw(-child), Signal::SIGKILL);
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            let seconds = limit.unwrap_or(0);
            return Err(failed(
                field,
                &format!("it ran past its timeout of {seconds} s"),
            ));
        }
        std::thread::sleep(LOOK);
    }
}

fn failed(field: &str, reason: &str) -> InitError {
    InitError::Act {
        act: field.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The hook's own process. Answers an exit code when it cannot be executed.
fn execute(
    hook: &Hook,
    stdin: std::os::fd::OwnedFd,
    become_who: impl FnOnce() -> Result<(), InitError>,
) -> i32 {
    let text = |text: &str| CString::new(text).ok();
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let ready = rustix::stdio::dup2_stdin(&stdin).is_ok() && become_who().is_ok();
    let program = text(&hook.path().to_string_lossy());
    let (Some(program), true) = (program, ready) else {
        return 126;
    };
    let mut arguments: Vec<_> = hook
        .args()
        .iter()
        .flatten()
        .filter_map(|a| text(a))
        .collect();
    if arguments.is_empty() {
        arguments.push(program.clone());
    }
    let environment: Vec<_> = hook
        .env()
        .iter()
        .flatten()
        .filter_map(|v| text(v))
        .collect();
    let Err(errno) = execve(&program, &arguments, &environment);
    let words = format!(
        "hook {}: {}\n",
        hook.path().display(),
        errno_words(&errno.into())
    );
    let _ = std::io::stderr().write_all(words.as_bytes());
    if errno == Errno::ENOENT { 127 } else { 126 }
}
