//! `binary://`: a logging program of the operator's that reads a process's output.
//!
//! containerd's contract (core/runtime/v2/README.md, "binary"): the URI's path is the program, each query
//! key and its first value are two arguments; CONTAINER_ID and CONTAINER_NAMESPACE are in its
//! environment; it reads standard output from descriptor 3 and standard error from descriptor 4, and
//! closes descriptor 5 when it is ready.
//!
//! ```text
//! process --copy--> pipe --> 3, 4 logger          ends when both pipes do; else SIGTERM, SIGKILL
//!                   pipe <-- 5                    its end, or a byte: ready
//! ```

use std::{
    io,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal},
};
use tokio::{
    net::unix::pipe::{Receiver, Sender},
    process::Child,
    time::timeout,
};
use url::Url;

use super::Error;

/// A logger that is not ready by then is taken for stuck.
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// From the end of the output to SIGTERM, and from that to SIGKILL: containerd's own.
const END_PATIENCE: Duration = Duration::from_secs(12);

/// The process whose output is logged.
#[derive(Clone, Copy, Debug)]
pub struct Logged<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container.
    pub container: &'a str,
}

/// A running logger and the pipes that it reads.
pub struct Logger {
    /// Into its descriptor 3.
    pub stdout: Sender,
    /// Into its descriptor 4.
    pub stderr: Sender,
    /// To be [ended](end) once both are closed.
    pub program: Child,
}

/// What a URI asks for.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    arguments: Vec<String>,
}

impl Program {
    fn parse(uri: &str) -> Result<Self, Error> {
        let refused = |why: String| Error::Logger {
            uri: uri.to_owned(),
            why,
        };
        let url = Url::parse(uri).map_err(|error| refused(error.to_string()))?;
        // "binary://name/..." would silently drop its first component.
        if url.host_str().is_some_and(|host| !host.is_empty()) {
            return Err(refused("its path is not absolute".to_owned()));
        }
        let path = percent_encoding::percent_decode_str(url.path());
        let path = path
            .decode_utf8()
            .map_err(|error| refused(error.to_string()))?;
        if !path.starts_with('/') || path.contains('\0') {
            return Err(refused("its path is not absolute".to_owned()));
        }
        let mut arguments: Vec<String> = Vec::new();
        let mut keys: Vec<String> = Vec::new();
        for (key, value) in url.query_pairs() {
            if !keys.iter().any(|known| *known == key) {
                keys.push(key.to_string());
                arguments.extend([key.into_owned(), value.into_owned()]);
            }
        }
        if arguments.iter().any(|argument| argument.contains('\0')) {
            return Err(refused("an argument holds a NUL".to_owned()));
        }
        Ok(Self {
            path: path.as_ref().into(),
            arguments,
        })
    }
}

impl Logger {
    /// Starts the program that `uri` names and waits until it is ready.
    pub async fn start(uri: &str, logged: Logged<'_>) -> Result<Self, Error> {
        let program = Program::parse(uri)?;
        let failed = |source: io::Error| Error::Open {
            path: program.path.clone(),
            source,
        };
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()));
        let ((stdout, to_stdout), (stderr, to_stderr)) = (pipe()?, pipe()?);
        let (ready, says_ready) = pipe()?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .env("CONTAINER_ID", logged.container)
            .env("CONTAINER_NAMESPACE", logged.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mappings = [(stdout, 3), (stderr, 4), (says_ready, 5)];
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        let mapped = command.fd_mappings(mappings.into());
        mapped.map_err(|collision| failed(io::Error::other(collision)))?;
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn().map_err(failed)?;
        // Its ends of the pipes are its alone from here on.
        drop(command);

        let sender = |fd| {
            rustix::io::ioctl_fionbio(&fd, true)?;
            Sender::from_owned_fd(fd)
        };
        let receiver = |fd| {
            rustix::io::ioctl_fionbio(&fd, true)?;
            Receiver::from_owned_fd(fd)
        };
        let logger = Self {
            stdout: sender(to_stdout).map_err(failed)?,
            stderr: sender(to_stderr).map_err(failed)?,
            program: child,
        };
        let ready = receiver(ready).map_err(failed)?;
        match timeout(READY_PATIENCE, until_ready(ready)).await {
            Ok(()) => Ok(logger),
            Err(_) => Err(Error::Logger {
                uri: uri.to_owned(),
                why: format!("it was not ready within {READY_PATIENCE:?}"),
            }),
        }
    }
}

/// A byte, the end or an error: it is ready, or it is gone, which the copies will find out.
async fn until_ready(ready: Receiver) {
    loop {
        if ready.readable().await.is_err() {
            return;
        }
        match ready.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// Waits for a logger whose pipes are closed; one that does not end is made to.
pub async fn end(mut program: Child) {
    if timeout(END_PATIENCE, program.wait()).await.is_ok() {
        return;
    }
    let pid = program
        .id()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // Not yet waited for, so the number is still its own.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    if timeout(END_PATIENCE, program.wait()).await.is_err() {
        let _ = program.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("binary:///usr/bin/log", "/usr/bin/log", &[])]
    #[case("binary:///l?a=b", "/l", &["a", "b"])]
    #[case("binary:///l?dir=%2Fvar%2Flog&v", "/l", &["dir", "/var/log", "v", ""])]
    #[case("binary:///l%20x?k=1&k=2", "/l x", &["k", "1"])]
    fn a_uri_is_a_program_and_its_arguments(
        #[case] uri: &str,
        #[case] path: &str,
        #[case] arguments: &[&str],
    ) {
        let program = Program::parse(uri).unwrap();
        assert_eq!(program.path, PathBuf::from(path));
        assert_eq!(program.arguments, arguments);
    }

    #[rstest]
    #[case("binary://log/file")]
    #[case("binary:")]
    #[case("binary://")]
    #[case("binary:///a%00b")]
    #[case("binary:///a?x=%00")]
    fn a_uri_without_a_program_is_refused(#[case] uri: &str) {
        assert!(matches!(Program::parse(uri), Err(Error::Logger { .. })));
    }
}
