//! What can fail between this process and KVM.

use std::io;

/// An act on a virtual machine failed. Guests cannot cause these.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// KVM refused.
    #[error("KVM cannot {act}: {source}")]
    Kvm {
        /// What was asked.
        act: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// An ancient or strange KVM.
    #[error("KVM has API version {0}, not 12")]
    ApiVersion(i32),
    /// The host's KVM lacks something without which no guest runs.
    #[error("this host's KVM lacks {0}")]
    Lacks(&'static str),
    /// Memory slots are numbered by KVM and there are only so many.
    #[error("guest memory at {address:#x}: no memory slot is left")]
    NoSlot {
        /// Guest-physical.
        address: u64,
    },
    /// A file could not be mapped for the guest.
    #[error("map a file of {bytes} bytes: {source}")]
    MapFile {
        /// Its length.
        bytes: u64,
        /// Why not.
        source: io::Error,
    },
    /// Guest memory that is not where it was said to be.
    #[error("find guest memory at {address:#x}")]
    FindMemory {
        /// Guest-physical.
        address: u64,
    },
    /// More MSRs or CPUID leaves than KVM's interface holds.
    #[error("{what}: {count} entries are more than KVM takes")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// KVM took some MSRs of a list and stopped at one.
    #[error("KVM does not take MSR {index:#x}")]
    Msr {
        /// The first that it refused.
        index: u32,
    },
    /// A thread or signal of this process.
    #[error("{act}: {source}")]
    Thread {
        /// What was tried.
        act: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// vCPU threads did not come to rest.
    #[error("vCPU {id} did not {act} in time")]
    Unresponsive {
        /// Which.
        id: u32,
        /// What it was asked.
        act: &'static str,
    },
    /// A number of vCPUs that cannot be let run.
    #[error("grant {granted} vCPUs: there are {present}, and the first always may run")]
    Grant {
        /// What was asked.
        granted: u32,
        /// How many there are.
        present: u32,
    },
    /// An act that the vCPUs' state does not allow.
    #[error("cannot {act} vCPUs that are {state}")]
    WrongState {
        /// What was asked.
        act: &'static str,
        /// What they are.
        state: &'static str,
    },
    /// Saved state that does not fit this machine.
    #[error("saved state does not fit: {0}")]
    State(String),
}

/// For `map_err`: what KVM was asked.
pub(crate) fn kvm(act: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HypervisorError {
    move |error| HypervisorError::Kvm {
        act,
        source: error.into(),
    }
}
