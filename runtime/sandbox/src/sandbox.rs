//! The handle that callers hold. Clones are cheap; the driver task owns the state.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use oci_spec::runtime::LinuxResources;
use tokio::{
    net::UnixStream,
    sync::{broadcast, mpsc, oneshot},
};

use crate::{
    ContainerRequest, ExecRequest, ProcessId, SandboxRequest,
    driver::{Call, Driver, Reply},
    host::record::Record,
    launch::{self, Planned, Ready},
};

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

/// Calls under way that the driver has not taken yet; callers wait beyond it.
const CALLS: usize = 64;
/// Events that a slow listener may be behind; beyond it the oldest are lost to that listener.
const EVENTS: usize = 1024;

/// A running pod.
#[derive(Clone)]
pub struct Sandbox {
    calls: mpsc::Sender<Call>,
    events: broadcast::Sender<Event>,
    about: Arc<About>,
}

/// What does not change.
struct About {
    report: LaunchReport,
    host_pid: u32,
    record: Record,
}

impl Sandbox {
    /// Starts the pod's VM and connects its agent. On failure nothing is left behind.
    pub async fn launch(request: SandboxRequest) -> Result<Self, Error> {
        let started = Planned::new(&request)?.start().await?;
        Ok(Self::drive(started.connect().await?.greet().await?))
    }

    /// Hands a pod to its driver.
    pub(crate) fn drive(ready: Ready) -> Self {
        let about = About {
            report: ready.report.clone(),
            host_pid: ready.host.machine_pid(),
            record: ready.host.record().clone(),
        };
        let (calls, received) = mpsc::channel(CALLS);
        let events = broadcast::Sender::new(EVENTS);
        let driver = Driver::new(ready, received, events.clone());
        tokio::spawn(driver.run());
        Self {
            calls,
            events,
            about: Arc::new(about),
        }
    }

    /// Removes all that the record in `bundle` names: processes, mounts, sockets, directories. For the
    /// caller whose predecessor died; does nothing, successfully, when there is no record.
    pub async fn clean_up(bundle: &Path) -> Result<(), Error> {
        launch::clean_up(bundle).await
    }

    /// Writes the pod's record into one more bundle: a pod outlives its first container's bundle, and
    /// after a killed shim any container's bundle must lead to what is left.
    pub fn record_in(&self, bundle: &Path) -> Result<(), Error> {
        Ok(self.about.record.write(bundle)?)
    }

    /// What the launch did.
    pub fn report(&self) -> &LaunchReport {
        &self.about.report
    }

    /// The host's pid of the VM process: what stands for "the container's pid" on the host.
    pub fn host_pid(&self) -> u32 {
        self.about.host_pid
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Mounts the root filesystem and volumes, and makes the container; its init waits for `start`.
    pub async fn create(&self, request: ContainerRequest) -> Result<Created, Error> {
        self.call(|reply| Call::Create(Box::new(request), reply))
            .await
    }

    /// Registers an exec; `start` runs it.
    pub async fn exec(&self, id: ProcessId, request: ExecRequest) -> Result<Stdio, Error> {
        self.call(|reply| Call::Exec(id, Box::new(request), reply))
            .await
    }

    /// Runs a created process; answers the guest's pid.
    pub async fn start(&self, id: ProcessId) -> Result<u32, Error> {
        self.call(|reply| Call::Start(id, reply)).await
    }

    /// The process as it is now.
    pub async fn state(&self, id: ProcessId) -> Result<ProcessState, Error> {
        self.call(|reply| Call::State(id, reply)).await
    }

    /// Waits for the end of a process; of one that has ended, answers at once.
    pub async fn wait(&self, id: ProcessId) -> Result<Exit, Error> {
        let mut exit = self.call(|reply| Call::Wait(id, reply)).await?;
        let exit = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        let exit = exit.ok().flatten();
        exit.ok_or_else(|| Error::NotFound("the process was never started".to_owned()))
    }

    /// Sends a signal, or to every process of the container with `all`.
    pub async fn kill(&self, id: ProcessId, signal: u32, all: bool) -> Result<(), Error> {
        self.call(|reply| Call::Kill(id, signal, all, reply)).await
    }

    /// Sets a terminal's size in columns and rows.
    pub async fn resize(&self, id: ProcessId, columns: u32, rows: u32) -> Result<(), Error> {
        self.call(|reply| Call::Resize(id, columns, rows, reply))
            .await
    }

    /// Ends a process's standard input.
    pub async fn close_stdin(&self, id: ProcessId) -> Result<(), Error> {
        self.call(|reply| Call::CloseStdin(id, reply)).await
    }

    /// Frees a stopped process; of init, the container, its mounts and its directory.
    pub async fn delete(&self, id: ProcessId) -> Result<Exit, Error> {
        self.call(|reply| Call::Delete(id, reply)).await
    }

    /// Guest pids of a container, with the exec id of those that `exec` made.
    pub async fn pids(&self, container: &str) -> Result<Vec<(u32, String)>, Error> {
        self.call(|reply| Call::Pids(container.to_owned(), reply))
            .await
    }

    /// Resource use of a container.
    pub async fn stats(&self, container: &str) -> Result<Stats, Error> {
        self.call(|reply| Call::Stats(container.to_owned(), reply))
            .await
    }

    /// Freezes a container.
    pub async fn pause(&self, container: &str) -> Result<(), Error> {
        self.call(|reply| Call::Pause(container.to_owned(), reply))
            .await
    }

    /// Thaws a container.
    pub async fn resume(&self, container: &str) -> Result<(), Error> {
        self.call(|reply| Call::Resume(container.to_owned(), reply))
            .await
    }

    /// Changes a container's limits.
    pub async fn update(&self, container: &str, resources: LinuxResources) -> Result<(), Error> {
        let resources = Box::new(resources);
        self.call(|reply| Call::Update(container.to_owned(), resources, reply))
            .await
    }

    /// Ends the VM and removes all that the pod owns. Idempotent.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.call(Call::Shutdown).await
    }

    async fn call<T>(&self, make: impl FnOnce(Reply<T>) -> Call) -> Result<T, Error> {
        let gone = || Error::VmGone("the pod's driver has ended".to_owned());
        let (reply, answer) = oneshot::channel();
        self.calls.send(make(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
