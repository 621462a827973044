//! The handle that callers hold. Clones are cheap; the driver task owns the state.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime},
};

use oci_spec::runtime::LinuxResources;
use tokio::{net::UnixStream, sync::broadcast};

use crate::{ContainerRequest, ExecRequest, ProcessId, SandboxRequest};

/// Why a call on a sandbox failed, by what the caller can do about it. Messages are for people.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// {0}
    #[error("{0}")]
    NotFound(String),
    /// {0}
    #[error("{0}")]
    AlreadyExists(String),
    /// {0}
    #[error("{0}")]
    WrongState(String),
    /// {0}
    #[error("{0}")]
    InvalidArgument(String),
    /// {0}
    #[error("{0}")]
    Unsupported(String),
    /// The VM is gone, and why (the guest's last console lines when there are any).
    #[error("{0}")]
    VmGone(String),
    /// {0}
    #[error("{0}")]
    Failed(String),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The guest's pid.
    pub pid: u32,
    /// 0..=255; 128 + signal when a signal killed it; 137 when its VM died.
    pub code: u32,
    /// Wall clock.
    pub at: SystemTime,
}

/// A process's place in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
}

/// A process as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// Its place in its life.
    pub status: Status,
    /// The guest's pid; 0 before it has one.
    pub pid: u32,
    /// When stopped: how.
    pub exit: Option<Exit>,
}

/// Connected standard streams, as asked for. Half close is end of file.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Write here what the process reads.
    pub stdin: Option<UnixStream>,
    /// Read here what the process writes.
    pub stdout: Option<UnixStream>,
    /// Read here what the process writes to standard error.
    pub stderr: Option<UnixStream>,
}

/// A created container.
#[derive(Debug)]
pub struct Created {
    /// The guest's pid of its init.
    pub pid: u32,
    /// Its streams.
    pub stdio: Stdio,
}

/// What happens without being asked for.
#[derive(Clone, Debug)]
pub enum Event {
    /// A process ended. Sent once for every started process, also when the VM died.
    Exited(ProcessId, Exit),
    /// The guest kernel killed something in this container for lack of memory.
    OutOfMemory {
        /// The container.
        container: String,
    },
    /// The VM ended unasked; an `Exited` for every process came before.
    VmGone(String),
}

/// cgroup v2 files of a container: name -> content.
pub type Stats = BTreeMap<String, String>;

/// One step of a launch and how long it took.
#[derive(Clone, Debug)]
pub struct Stage {
    /// "VM start", "kernel to agent", "agent ready", ...
    pub name: &'static str,
    /// Wall time.
    pub took: Duration,
}

/// What a launch did, for the demonstration, `check` and the log.
#[derive(Clone, Debug)]
pub struct LaunchReport {
    /// "qemu" or "kvm".
    pub engine: &'static str,
    /// Why that one.
    pub why: String,
    /// uname -r of the guest.
    pub kernel_release: String,
    /// In order.
    pub stages: Vec<Stage>,
    /// Host processes of the pod: (name, pid).
    pub processes: Vec<(String, u32)>,
}

/// A running pod.
#[derive(Clone)]
pub struct Sandbox {}

impl Sandbox {
    /// Starts the pod's VM and connects its agent. On failure nothing is left behind.
    pub async fn launch(_request: SandboxRequest) -> Result<Self, Error> {
        unimplemented!()
    }
    /// Removes all that the record in `bundle` names: processes, mounts, sockets, directories. For the
    /// caller whose predecessor died; does nothing, successfully, when there is no record.
    pub async fn clean_up(_bundle: &Path) -> Result<(), Error> {
        unimplemented!()
    }
    /// What the launch did.
    pub fn report(&self) -> &LaunchReport {
        unimplemented!()
    }
    /// The host's pid of the VM process: what stands for "the container's pid" on the host.
    pub fn host_pid(&self) -> u32 {
        unimplemented!()
    }
    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        unimplemented!()
    }
    /// Mounts the root filesystem and volumes, and makes the container; its init waits for `start`.
    pub async fn create(&self, _request: ContainerRequest) -> Result<Created, Error> {
        unimplemented!()
    }
    /// Registers an exec; `start` runs it.
    pub async fn exec(&self, _id: ProcessId, _request: ExecRequest) -> Result<Stdio, Error> {
        unimplemented!()
    }
    /// Runs a created process; answers the guest's pid.
    pub async fn start(&self, _id: ProcessId) -> Result<u32, Error> {
        unimplemented!()
    }
    /// The process as it is now.
    pub async fn state(&self, _id: ProcessId) -> Result<ProcessState, Error> {
        unimplemented!()
    }
    /// Waits for the end of a process; of one that has ended, answers at once.
    pub async fn wait(&self, _id: ProcessId) -> Result<Exit, Error> {
        unimplemented!()
    }
    /// Sends a signal, or to every process of the container with `all`.
    pub async fn kill(&self, _id: ProcessId, _signal: u32, _all: bool) -> Result<(), Error> {
        unimplemented!()
    }
    /// Sets a terminal's size in columns and rows.
    pub async fn resize(&self, _id: ProcessId, _columns: u32, _rows: u32) -> Result<(), Error> {
        unimplemented!()
    }
    /// Ends a process's standard input.
    pub async fn close_stdin(&self, _id: ProcessId) -> Result<(), Error> {
        unimplemented!()
    }
    /// Frees a stopped process; of init, the container, its mounts and its directory.
    pub async fn delete(&self, _id: ProcessId) -> Result<Exit, Error> {
        unimplemented!()
    }
    /// Guest pids of a container, with the exec id of those that `exec` made.
    pub async fn pids(&self, _container: &str) -> Result<Vec<(u32, String)>, Error> {
        unimplemented!()
    }
    /// Resource use of a container.
    pub async fn stats(&self, _container: &str) -> Result<Stats, Error> {
        unimplemented!()
    }
    /// Freezes a container.
    pub async fn pause(&self, _container: &str) -> Result<(), Error> {
        unimplemented!()
    }
    /// Thaws a container.
    pub async fn resume(&self, _container: &str) -> Result<(), Error> {
        unimplemented!()
    }
    /// Changes a container's limits.
    pub async fn update(&self, _container: &str, _resources: LinuxResources) -> Result<(), Error> {
        unimplemented!()
    }
    /// Ends the VM and removes all that the pod owns. Idempotent.
    pub async fn shutdown(&self) -> Result<(), Error> {
        unimplemented!()
    }
}
