//! The last steps, the same for a container's first process and for an exec.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access, execve};
use oci_spec::runtime::{LinuxSeccomp, Process};
use rustix::{
    fs::{FileType, Uid, fchown, fstat},
    io::Errno,
    thread::set_no_new_privs,
};

use super::{
    Handed, InitError, act, await_start,
    container::own_proc,
    hooks::Hooks,
    terminal::{self, Terminal},
    user,
};
use crate::{
    seccomp::{self, Filter},
    sys::{self, descriptors::close_on_exec_from_3, errno_words},
};

/// Sets how likely the kernel is to kill this process for memory. Through the guest's /proc, and so
/// before the process sees the container's.
pub(super) fn set_oom_score(process: &Process) -> Result<(), InitError> {
    if let Some(adj) = process.oom_score_adj() {
        File::from(own_proc("oom_score_adj")?)
            .write_all(adj.to_string().as_bytes())
            .map_err(|e| act(e, || format!("process.oomScoreAdj: set {adj}")))?;
    }
    Ok(())
}

/// What differs between a container's first process and an exec.
pub(super) struct Rest<'a> {
    pub profile: Option<&'a LinuxSeccomp>,
    pub hooks: &'a Hooks,
    pub in_user_namespace: bool,
}

/// Everything from here to exec. Waits for the start in between.
pub(super) fn execute(
    process: &Process,
    rest: Rest<'_>,
    handed: Handed,
    terminal: Option<Terminal>,
) -> Result<Infallible, InitError> {
    let Handed {
        channel, streams, ..
    } = handed;
    let filter = rest.profile.map(seccomp::compile).transpose()?;
    user::set_limits(process)?;
    connect_streams(process, streams, terminal.as_ref(), rest.in_user_namespace)?;
    let early = std::env::set_current_dir(process.cwd());
    let no_new_privileges = process.no_new_privileges() == Some(true);
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, which the user may not have: then the profile
    // must allow what follows here, as with runc.
    let (early_filter, late_filter) = if no_new_privileges {
        (None, filter)
    } else {
        (filter, None)
    };
    install(early_filter)?;
    user::become_user(process)?;
    // With the user's rights if root's did not suffice (a network filesystem that squashes root).
    if early.is_err() {
        std::env::set_current_dir(process.cwd()).map_err(|e| {
            InitError::Command(format!(
                "chdir to cwd ({:?}) set in config.json failed: {}",
                process.cwd(),
                errno_words(&e)
            ))
        })?;
    }
    // A working directory outside of the root would be a way out of it (CVE-2024-21626).
    if !std::env::current_dir().is_ok_and(|here| here.is_absolute()) {
        return Err(InitError::Command(
            "current working directory is outside of container mount namespace root".to_owned(),
        ));
    }
    if no_new_privileges {
        set_no_new_privs(true).map_err(|e| act(e, || "process.noNewPrivileges: set".to_owned()))?;
    }
    let arguments = strings(process.args().as_deref().unwrap_or_default());
    let environment = environment(process);
    let command = process.args().as_deref().unwrap_or_default().first();
    let command = command.map(String::as_str).unwrap_or_default();
    let path = find(command, &environment)?;
    let program = strings(&[path.to_string_lossy().into_owned()])
        .pop()
        .ok_or_else(|| InitError::Command("exec: no command".to_owned()))?;
    let environment = strings(&environment);
    close_on_exec_from_3().map_err(|e| act(e, || "close descriptors on exec".to_owned()))?;

    await_start(&channel, terminal.as_ref().map(|t| &t.master))?;
    drop(terminal);
    install(late_filter)?;
    rest.hooks.run_start()?;
    let Err(errno) = execve(&program, &arguments, &environment);
    // Too late to fail the start: the words and the code of runc, on the container's own stderr.
    let words = format!("exec {}: {}\n", path.display(), errno_words(&errno.into()));
    let _ = io::stderr().write_all(words.as_bytes());
    std::process::exit(if errno == nix::errno::Errno::ENOENT {
        127
    } else {
        1
    })
}

fn install(filter: Option<Filter>) -> Result<(), InitError> {
    match filter {
        Some(filter) => sys::seccomp::install(&filter.program, filter.flags)
            .map_err(|e| act(e, || "linux.seccomp: install the filter".to_owned())),
        None => Ok(()),
    }
}

fn connect_streams(
    process: &Process,
    streams: Option<[OwnedFd; 3]>,
    terminal: Option<&Terminal>,
    in_user_namespace: bool,
) -> Result<(), InitError> {
    let doing = || "connect standard streams".to_owned();
    match (&streams, terminal) {
        (Some([stdin, stdout, stderr]), _) => {
            rustix::stdio::dup2_stdin(stdin).map_err(|e| act(e, doing))?;
            rustix::stdio::dup2_stdout(stdout).map_err(|e| act(e, doing))?;
            rustix::stdio::dup2_stderr(stderr).map_err(|e| act(e, doing))?;
        }
        (None, Some(terminal)) => {
            terminal::control(terminal)?;
            rustix::stdio::dup2_stdin(&terminal.slave).map_err(|e| act(e, doing))?;
            rustix::stdio::dup2_stdout(&terminal.slave).map_err(|e| act(e, doing))?;
            rustix::stdio::dup2_stderr(&terminal.slave).map_err(|e| act(e, doing))?;
        }
        (None, None) => return Err(InitError::NoAgent),
    }
    // The user must be able to open /dev/stdout again; /dev/null is everybody's and stays root's.
    for stream in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let stat = fstat(stream).map_err(|e| act(e, doing))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let null = kind == FileType::CharacterDevice && terminal.is_none();
        if !null && stat.st_uid != process.user().uid() {
            let uid = Uid::from_raw(process.user().uid());
            match fchown(stream.as_fd(), Some(uid), None) {
                // The agent's pipes are not of this user namespace; they can still be used.
                Err(Errno::PERM | Errno::INVAL) if in_user_namespace => {}
                other => other.map_err(|e| act(e, doing))?,
            }
        }
    }
    Ok(())
}

/// NUL characters were refused by the check of the specification.
fn strings(list: &[String]) -> Vec<CString> {
    list.iter()
        .filter_map(|text| CString::new(text.as_bytes()).ok())
        .collect()
}

/// The specification's environment, and HOME from passwd if it gives none, as runc does.
fn environment(process: &Process) -> Vec<String> {
    let mut environment = process.env().clone().unwrap_or_default();
    let has_home = environment.iter().any(|variable| {
        variable
            .strip_prefix("HOME=")
            .is_some_and(|h| !h.is_empty())
    });
    if !has_home {
        environment.retain(|variable| !variable.starts_with("HOME="));
        environment.push(format!("HOME={}", user::home(process.user().uid())));
    }
    environment
}

/// Finds the command as Go's exec.LookPath does, whose words users know from runc.
fn find(command: &str, environment: &[String]) -> Result<PathBuf, InitError> {
    if command.contains('/') {
        return match fs::metadata(command) {
            Err(e) => Err(InitError::Command(format!(
                "exec: {command:?}: stat {command}: {}",
                errno_words(&e)
            ))),
            Ok(_) if is_executable(Path::new(command)) => Ok(PathBuf::from(command)),
            Ok(_) => Err(InitError::Command(format!(
                "exec: {command:?}: permission denied"
            ))),
        };
    }
    // The last one wins, as in Go's environment.
    let path = environment
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or_default();
    path.split(':')
        // An empty element means the working directory; only absolute results are taken, as in Go.
        .filter(|directory| directory.starts_with('/'))
        .map(|directory| Path::new(directory).join(command))
        .find(|candidate| !command.is_empty() && is_executable(candidate))
        .ok_or_else(|| {
            InitError::Command(format!(
                "exec: {command:?}: executable file not found in $PATH"
            ))
        })
}

fn is_executable(path: &Path) -> bool {
    let Ok(metadata) = fs::metadata(path) else {
        return false;
    };
    metadata.is_file()
        && metadata.permissions().mode() & 0o111 != 0
        && access(path, AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(command: &str, path: &str) -> String {
        find(command, &[format!("PATH={path}")])
            .expect_err("must not be found")
            .to_string()
    }

    #[test]
    fn commands_are_found_as_runc_finds_them() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().to_str().expect("UTF-8").to_owned();
        fs::write(dir.path().join("tool"), "#!/bin/sh\n").expect("write");
        fs::set_permissions(dir.path().join("tool"), fs::Permissions::from_mode(0o755))
            .expect("chmod");
        fs::write(dir.path().join("plain"), "").expect("write");
        fs::create_dir(dir.path().join("directory")).expect("mkdir");

        let environment = [format!("PATH=/nonexistent:relative:{path}")];
        assert_eq!(
            find("tool", &environment).expect("found"),
            dir.path().join("tool")
        );
        let words = "unable to start container process: exec: ";
        assert_eq!(
            failure("nosuch", &path),
            format!("{words}\"nosuch\": executable file not found in $PATH")
        );
        assert_eq!(
            failure("plain", &path),
            format!("{words}\"plain\": executable file not found in $PATH")
        );
        assert_eq!(
            failure("/no/such", &path),
            format!("{words}\"/no/such\": stat /no/such: no such file or directory")
        );
        for name in ["plain", "directory"] {
            let whole = format!("{path}/{name}");
            assert_eq!(
                failure(&whole, &path),
                format!("{words}{whole:?}: permission denied")
            );
        }
    }

    #[test]
    fn home_is_added_only_when_missing() {
        let mut process = Process::default();
        process.set_env(Some(vec!["HOME=/x".into()]));
        assert_eq!(environment(&process), ["HOME=/x"]);
        process.set_env(Some(vec!["A=b".into(), "HOME=".into()]));
        let found = environment(&process);
        assert_eq!(found.len(), 2);
        assert!(found[1].starts_with("HOME=/"));
    }
}
