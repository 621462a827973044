//! A machine that is saved, or goes on from where another was.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

/// The two files of a saved machine, by numbers of inherited descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateDescriptors {
    /// Processors and devices: less than a mebibyte.
    pub state: RawFd,
    /// Memory: a sparse file, a page longer than the guest's.
    pub memory: RawFd,
}

/// What of a machine's saving and restoring is inherited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotDescriptors {
    /// For reading. The machine goes on where this one was saved, in place of booting the kernel; it must
    /// be of the same parts. Nobody may write the memory file while the machine exists: where no device
    /// is served by another process (`fs`, `vsock`), pages come from it when they are touched.
    pub restore: Option<StateDescriptors>,
    /// For reading and writing. `Save` replaces what they hold.
    pub save: Option<StateDescriptors>,
}
