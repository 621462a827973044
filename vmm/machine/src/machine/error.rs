//! Why a machine cannot be what was asked for.

use std::io;

use isopod_hypervisor::HypervisorError;
use isopod_memory::saved::SavedError;
use isopod_virtio::{WorkerGone, transport::AttachError};

use crate::{BootError, CommandLineError, layout, ram};

/// A machine cannot be built, or an act on it failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// RAM.
    #[error(transparent)]
    Ram(#[from] ram::RamError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Its command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// Numbers of processors that make no sense.
    #[error(
        "{online} processors online, {granted} allowed to run, {present} present: at least one, and \
         no more than the next, of {} at most",
        layout::MAX_CPUS
    )]
    Cpus {
        /// Online at boot.
        online: u32,
        /// Allowed to run.
        granted: u32,
        /// Present.
        present: u32,
    },
    /// Every slot is taken.
    #[error("device {name}: all {} slots are taken", layout::LINES.len())]
    NoSlot {
        /// Which.
        name: String,
    },
    /// A device could not be put behind its registers.
    #[error("device {name}: {source}")]
    Attach {
        /// Which.
        name: String,
        /// Why.
        source: AttachError,
    },
    /// An eventfd.
    #[error("device {name}: make an interrupt: {source}")]
    Interrupt {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A device's thread ended.
    #[error("device {name}: {source}")]
    Device {
        /// Which.
        name: String,
        /// What is wrong.
        source: WorkerGone,
    },
    /// A file lies beyond what processors of this host can address.
    #[error("no address is left for a file of {bytes} bytes")]
    NoAddress {
        /// The file's.
        bytes: u64,
    },
    /// A saved machine that this one cannot become.
    #[error("the saved machine differs in {0}")]
    State(String),
    /// A saved machine's memory.
    #[error("the saved memory: {0}")]
    Saved(#[from] SavedError),
    /// A device whose state this process does not have.
    #[error("device {name}: {reason}")]
    Elsewhere {
        /// Which.
        name: String,
        /// Where it is.
        reason: &'static str,
    },
}
