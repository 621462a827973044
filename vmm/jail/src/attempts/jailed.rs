//! A test program that starts itself as the process to be jailed: a jailed process begins with one
//! thread, PID 1 of its namespace, with descriptors of its starter's.

use std::{
    fs::File,
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::process::ExitStatusExt,
    },
    process::{Command, ExitStatus, Stdio},
};

use command_fds::{CommandFdExt, FdMapping};
use nix::sched::{CloneFlags, unshare};

use super::{Attempt, Targets};

/// The first argument of the process.
const WORD: &str = "jailed";
const FILE: RawFd = 10;
const NAMESPACE: RawFd = 11;

/// What the process is told, if this is it: what to make attempts at, and its arguments.
#[must_use]
pub fn told() -> Option<(Targets, Vec<String>)> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let process = arguments.next()?.parse().ok()?;
    Some((targets(process), arguments.collect()))
}

/// What a process started from here makes attempts at.
#[must_use]
pub fn targets_here() -> Targets {
    targets(std::process::id())
}

fn targets(process: u32) -> Targets {
    Targets {
        process: process.cast_signed(),
        file: FILE,
        namespace: NAMESPACE,
    }
}

/// How the process ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Ended {
    /// Whether it was ended for this attempt, and told so.
    #[must_use]
    pub fn for_attempt(&self, attempt: &Attempt, filter: &str) -> bool {
        let call = usize::try_from(attempt.number).ok();
        let Some(call) = call.and_then(syscalls::Sysno::new) else {
            return false;
        };
        let begin = format!("test: system call {call} ({}) with ", attempt.number);
        let end = format!("is forbidden by the filter {filter:?}: ending\n");
        self.status.signal() == Some(libc::SIGSYS)
            && self.errors.starts_with(&begin)
            && self.errors.ends_with(&end)
            // Nothing behind the attempt.
            && self.output == "ready\n"
    }

    /// The attempts among `made` that were not refused as they should be. The process said
    /// `NAME: ERRNO` for each.
    #[must_use]
    pub fn not_refused(&self, made: &[Attempt]) -> Vec<String> {
        let told = |attempt: &Attempt| {
            let mut lines = self.output.lines();
            lines.find_map(|line| line.strip_prefix(attempt.name)?.strip_prefix(": "))
        };
        let wrong = made.iter().filter_map(|attempt| {
            let errno = told(attempt);
            let number = errno.and_then(|errno| errno.parse().ok());
            let refused = number.is_some_and(|errno| attempt.refusals.contains(&errno));
            (!refused).then(|| format!("{}: {errno:?}, not {:?}", attempt.name, attempt.refusals))
        });
        wrong.collect()
    }
}

/// Makes attempts and says how each was refused.
pub fn make(attempts: &[Attempt]) {
    for attempt in attempts {
        let errno = match attempt.make() {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        println!("{}: {errno}", attempt.name);
    }
}

/// Starts this program as a process to be jailed and waits for its end. `prepare` is done by a thread
/// of the process's own, which it may take to other namespaces.
///
/// # Errors
/// It could not be started.
pub fn start(
    arguments: &[&str],
    prepare: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<Ended> {
    let start = || {
        prepare()?;
        // The calling thread's later children are in this namespace.
        unshare(CloneFlags::CLONE_NEWPID)?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(WORD)
            .arg(std::process::id().to_string())
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let file = tempfile::tempfile()?;
        let namespace = File::open("/proc/self/ns/mnt")?;
        let descriptors = [(OwnedFd::from(file), FILE), (namespace.into(), NAMESPACE)];
        let mapped = descriptors.map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        command
            .fd_mappings(mapped.into())
            .map_err(io::Error::other)?;
        let output = command.output()?;
        Ok(Ended {
            status: output.status,
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    };
    std::thread::scope(|scope| scope.spawn(start).join()).unwrap_or_else(|_| {
        Err(io::Error::other(
            "the thread that starts the process panicked",
        ))
    })
}
