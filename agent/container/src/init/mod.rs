//! The process that becomes a container's process: one thread, re-executed from the agent's binary.
//!
//! See the drawing in the crate's documentation for who says what when.

mod attributes;
mod container;
mod devices;
mod exec;
mod hooks;
mod process;
mod terminal;
mod user;
mod users;

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    os::fd::{AsFd, OwnedFd},
    panic,
};

use oci_spec::runtime::LinuxSeccomp;
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{DumpableBehavior, set_dumpable_behavior},
};

use crate::{
    job::{Failure, FailureKind, Job, Join, Task, Told},
    launch::{receive, tell},
    spec::SpecError,
    sys::fork::{NewNamespaces, Side, default_signals, fork_into},
};

/// argv[0] that makes the agent's binary be this.
pub const INIT_NAME: &str = "isopod-container-init";

/// What went wrong in `init`, before it is told to the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// The specification asks for something impossible.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The command cannot be run, in the words of runc.
    #[error("unable to start container process: {0}")]
    Command(String),
    /// A step failed.
    #[error("{act}: {reason}")]
    Act { act: String, reason: String },
    /// The agent went away or said something else than expected.
    #[error("the agent does not answer")]
    NoAgent,
}

/// A failed step.
pub(crate) fn act(error: impl Into<std::io::Error>, doing: impl FnOnce() -> String) -> InitError {
    InitError::Act {
        act: doing(),
        reason: crate::sys::errno_words(&error.into()),
    }
}

impl InitError {
    fn told(&self) -> Told {
        let kind = match self {
            Self::Spec(_) => FailureKind::Spec,
            Self::Command(_) => FailureKind::Command,
            Self::Act { .. } | Self::NoAgent => FailureKind::System,
        };
        let mut message = self.to_string();
        // A path in it may be as long as the caller likes.
        if let Some((end, _)) = message.char_indices().nth(2048) {
            message.truncate(end);
        }
        Told::Failed(Failure { kind, message })
    }
}

/// What came with the job.
pub(crate) struct Handed {
    pub channel: OwnedFd,
    pub streams: Option<[OwnedFd; 3]>,
    pub joins: Vec<(Join, OwnedFd)>,
    /// An exec's filter: the container's.
    pub seccomp: Option<LinuxSeccomp>,
    /// Made with the rights of the guest's root.
    trees: users::Trees,
    /// This process as the guest knows it.
    guest_pid: i32,
}

/// Becomes the container's process, or ends.
pub fn run() -> ! {
    std::process::exit(match first_stage() {
        Ok(()) => 0,
        Err(_) => 1,
    })
}

/// Reads the job, makes the container's process and stays its parent until the agent knows it.
fn first_stage() -> Result<(), InitError> {
    // Nobody in a container may trace this process or look at its descriptors: it is root of the guest.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| act(e, || "become untraceable".to_owned()))?;
    let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|e| act(e, || "take the channel".to_owned()))?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| act(e, || "open /dev/null".to_owned()))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| act(e, || "replace stdin".to_owned()))?;

    let result = make_process(channel);
    match result {
        Ok(()) => Ok(()),
        Err((channel, error)) => {
            // If the agent is gone, so is everyone who could be told.
            let _ = tell(channel.as_fd(), &error.told(), &[]);
            Err(error)
        }
    }
}

fn make_process(channel: OwnedFd) -> Result<(), (OwnedFd, InitError)> {
    let (job, mut fds) = match read_job(&channel) {
        Ok(read) => read,
        Err(error) => return Err((channel, error)),
    };
    let prepared = (|| {
        let cgroup = if job.layout.cgroup {
            Some(take(&mut fds)?)
        } else {
            None
        };
        let streams = if job.terminal {
            None
        } else {
            Some([take(&mut fds)?, take(&mut fds)?, take(&mut fds)?])
        };
        let mut joins = Vec::new();
        for join in &job.layout.joins {
            joins.push((*join, take(&mut fds)?));
        }
        if let Some(process) = job.task.process() {
            // With the rights of the guest's root, which a user namespace takes; the child inherits both.
            process::set_oom_score(process)?;
            attributes::set_priorities(process)?;
        }
        let (trees, new) = match &job.task {
            Task::Create { spec, .. } => {
                let new = NewNamespaces {
                    pid: container::wants_pid_namespace(spec),
                    user: users::wanted_new(spec),
                };
                let trees = users::prepare(spec)?;
                container::make_time_namespace(spec)?;
                (trees, new)
            }
            Task::Exec { .. } => Default::default(),
        };
        for (join, fd) in &joins {
            // A pid namespace is entered by the next child only.
            if matches!(join, Join::Pid | Join::Everything) {
                nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWPID)
                    .map_err(|e| act(e, || "join the pid namespace".to_owned()))?;
            }
        }
        for (join, fd) in &joins {
            // Last: it takes the rights to join others. The child's pid namespace is then owned by it.
            if *join == Join::User {
                nix::sched::setns(fd, nix::sched::CloneFlags::CLONE_NEWUSER)
                    .map_err(|e| act(e, || "join the user namespace".to_owned()))?;
            }
        }
        let gate =
            pipe_with(PipeFlags::CLOEXEC).map_err(|e| act(e, || "make a pipe".to_owned()))?;
        let side = fork_into(cgroup.as_ref().map(AsFd::as_fd), new)
            .map_err(|e| act(e, || "clone".to_owned()))?;
        Ok((streams, joins, trees, gate, side))
    })();
    let (streams, joins, trees, (gate_in, gate_out), side) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Err((channel, error)),
    };
    match side {
        Side::Parent { child } => {
            drop(gate_in);
            let mapped = match &job.task {
                Task::Create { spec, .. } if users::wanted_new(spec) => users::map(child, spec),
                _ => Ok(()),
            };
            let scheduled = mapped.and_then(|()| match job.task.process() {
                Some(process) => attributes::set_lost_policy(process, child),
                None => Ok(()),
            });
            match scheduled.and_then(|()| introduce(&channel, child, gate_out)) {
                Ok(()) => Ok(()),
                Err(error) => Err((channel, error)),
            }
        }
        Side::Child => {
            drop(gate_out);
            let mut pid = [0; size_of::<i32>()];
            match File::from(gate_in).read_exact(&mut pid).map(drop) {
                Ok(_) => second_stage(
                    job,
                    Handed {
                        channel,
                        streams,
                        joins,
                        seccomp: None,
                        trees,
                        guest_pid: i32::from_ne_bytes(pid),
                    },
                ),
                // Nobody knows this process: it must not be.
                _ => std::process::exit(1),
            }
        }
    }
}

fn take(fds: &mut std::collections::VecDeque<OwnedFd>) -> Result<OwnedFd, InitError> {
    fds.pop_front().ok_or(InitError::NoAgent)
}

fn read_job(channel: &OwnedFd) -> Result<(Job, std::collections::VecDeque<OwnedFd>), InitError> {
    let (_, fds) = receive(channel.as_fd()).map_err(|e| act(e, || "receive the job".to_owned()))?;
    let mut fds = std::collections::VecDeque::from(fds);
    let mut paper = File::from(take(&mut fds)?);
    let mut text = Vec::new();
    paper
        .rewind()
        .and_then(|()| paper.read_to_end(&mut text))
        .map_err(|e| act(e, || "read the job".to_owned()))?;
    let job =
        serde_json::from_slice(&text).map_err(|e| act(e, || "understand the job".to_owned()))?;
    Ok((job, fds))
}

/// Tells the agent the pid, and opens the gate once the agent knows it.
fn introduce(channel: &OwnedFd, child: i32, gate: OwnedFd) -> Result<(), InitError> {
    tell(channel.as_fd(), &Told::Forked(child), &[])
        .map_err(|e| act(e, || "tell the pid".to_owned()))?;
    hear(channel, b'K')?;
    File::from(gate)
        .write_all(&child.to_ne_bytes())
        .map_err(|e| act(e, || "open the gate".to_owned()))
}

/// Waits for one word of the agent.
fn hear(channel: &OwnedFd, word: u8) -> Result<(), InitError> {
    let (message, _) =
        receive(channel.as_fd()).map_err(|e| act(e, || "listen to the agent".to_owned()))?;
    if message == [word] {
        Ok(())
    } else {
        Err(InitError::NoAgent)
    }
}

/// The container's own process.
fn second_stage(job: Job, handed: Handed) -> ! {
    let copy = handed.channel.try_clone();
    panic::set_hook(Box::new(move |info| {
        if let Ok(channel) = &copy {
            let failure = Failure {
                kind: FailureKind::System,
                message: format!("container init panicked: {info}"),
            };
            let _ = tell(channel.as_fd(), &Told::Failed(failure), &[]);
        }
    }));
    default_signals();
    let channel = handed.channel.try_clone();
    let result = match job.task {
        Task::Create { spec, anchor } => container::run(&spec, &anchor, handed),
        Task::Exec {
            process,
            seccomp,
            also,
        } => {
            let seccomp = seccomp.map(|profile| *profile);
            exec::run(&process, also, Handed { seccomp, ..handed })
        }
    };
    // Neither returns when all went well.
    let Err(error) = result;
    if let Ok(channel) = channel {
        let _ = tell(channel.as_fd(), &error.told(), &[]);
    }
    std::process::exit(match error {
        // As a shell says it.
        InitError::Command(_) => 127,
        _ => 1,
    })
}

/// Says that all is done but exec, and waits for the start.
pub(crate) fn await_start(channel: &OwnedFd, master: Option<&OwnedFd>) -> Result<(), InitError> {
    let master: Vec<_> = master.iter().map(|fd| fd.as_fd()).collect();
    tell(channel.as_fd(), &Told::Ready, &master)
        .map_err(|e| act(e, || "tell that all is ready".to_owned()))?;
    hear(channel, b'S')
}
