//! What runs the virtual machine, behind one small trait. An engine starts a machine from its
//! configuration; the machine is one process of the host that can be watched and ended.

mod choose;
pub(crate) mod console;
mod kvm;
mod qemu;

pub(crate) use choose::{Choice, choose};

use std::{ops::Range, os::fd::OwnedFd, time::Duration};

use async_trait::async_trait;
use tokio::net::UnixStream;

use crate::{
    host::{HostError, record::RecordedProcess, spawner::Spawner},
    plan::PodPlan,
};
use console::Console;

/// Starts machines.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// "qemu", "kvm".
    fn name(&self) -> &'static str;

    /// Whether the files it needs are there and what they claim; called before anything is made.
    fn check(&self, plan: &PodPlan) -> Result<(), EngineError>;

    /// Starts the process of a machine. It runs no guest code before its back ends answer.
    async fn start(
        &self,
        plan: &PodPlan,
        back_ends: BackEnds,
        spawner: &Spawner,
    ) -> Result<Box<dyn Machine>, EngineError>;
}

/// A machine: one process. Dropped, it is killed.
#[async_trait]
pub(crate) trait Machine: Send {
    /// For the record.
    fn process(&self) -> RecordedProcess;

    /// What the guest wrote last.
    fn console(&self) -> &Console;

    /// Waits until the process controls its machine: the end of "VM start".
    async fn running(&mut self) -> Result<(), EngineError>;

    /// What it grows by.
    fn spare(&self) -> Box<dyn Spare>;

    /// Waits for the end of the process and tells why it ended. May be dropped and called again.
    async fn exited(&mut self) -> String;

    /// Ends the process: politely for `grace`, then by force.
    async fn end(&mut self, grace: Duration) -> Result<(), HostError>;
}

/// What a machine can be given while it runs, beside what it booted with.
#[async_trait]
pub(crate) trait Spare: Send + Sync {
    /// Memory: MiB, in all.
    fn memory_mib(&self) -> u64;

    /// Lets the guest use so much of it. Answers when it does, if that is more than before, and what the
    /// agent must do about it.
    async fn lend(&self, mib: u64) -> Result<Lent, EngineError>;

    /// Lets the guest run so many of its processors, those with the lowest numbers; all are there from the
    /// boot. Before the agent brings some online, and after it has taken some offline: a guest waits for a
    /// processor that it still uses.
    async fn grant(&self, cpus: u32) -> Result<(), EngineError>;
}

/// Guest-physical addresses, in ranges of whole [`MEMORY_BLOCK_MIB`]. None where the guest's kernel learns
/// of its memory from a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lent {
    /// To be in use.
    pub used: Vec<Range<u64>>,
    /// Not to be.
    pub unused: Vec<Range<u64>>,
}

/// Linux takes memory into use in blocks of this, in MiB (x86: `MIN_MEMORY_BLOCK_SIZE`).
const MEMORY_BLOCK_MIB: u64 = 128;

/// The other sides of a machine's devices, and what ends it with its owner.
pub(crate) struct BackEnds {
    /// Connected to isopod-fs: vhost-user front end of the shared directory.
    pub fs: OwnedFd,
    /// The same of the vsock device.
    pub vsock: OwnedFd,
    /// Closes when the owner of the pod ends.
    pub lifeline: OwnedFd,
}

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// An act on the host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The engine that the configuration names is not there.
    #[error("engine = \"{name}\": {why}")]
    Unavailable {
        /// Its name.
        name: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// A socket could not be made.
    #[error("make a {what}: {source}")]
    Socket {
        /// For what.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The machine does not get more memory.
    #[error("give the virtual machine {mib} MiB more memory than it booted with: {why}")]
    Memory {
        /// What was wanted.
        mib: u64,
        /// Why not.
        why: String,
    },
    /// The machine does not get more or fewer processors.
    #[error("let the virtual machine run {cpus} processors: {why}")]
    Processors {
        /// What was wanted.
        cpus: u32,
        /// Why not.
        why: String,
    },
    /// The process ended before it controlled its machine.
    #[error("the virtual machine did not start: {0}")]
    Ended(String),
    /// The process did not answer.
    #[error("the virtual machine's process did not answer within {0:?}")]
    Silent(Duration),
}

/// Our end for the runtime, theirs for a process.
fn pair(what: &'static str) -> Result<(UnixStream, OwnedFd), EngineError> {
    let act = || -> std::io::Result<_> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    act().map_err(|source| EngineError::Socket { what, source })
}

impl From<EngineError> for crate::Error {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Unavailable { .. } => Self::Unsupported(error.to_string()),
            EngineError::Ended(_) => Self::VmGone(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
