//! What one `isopod-vmm` process is told: JSON on its standard input, then end of file.
//!
//! Descriptors are inherited; the configuration names their numbers. It opens nothing itself.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::{CpuConfig, FsConfig, MemoryConfig, SnapshotDescriptors, VsockConfig};

/// One machine monitor: one virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorConfig {
    /// For logs; the pod's id.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: CpuConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// The kernel's parameters in order, without those of the monitor's own devices.
    pub command_line: Vec<String>,
    /// The host's KVM interprets the guest's supervisor mode; the kernel is told what that takes.
    pub emulated_supervisor: bool,
    /// The shared directory.
    pub fs: Option<FsConfig>,
    /// The channel to the agent.
    pub vsock: Option<VsockConfig>,
    /// Whom the monitor runs as, in its jail.
    pub uid: u32,
    /// The same.
    pub gid: u32,
    /// What it inherits.
    pub descriptors: MonitorDescriptors,
}

/// Numbers of inherited descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorDescriptors {
    /// `/dev/kvm`, for reading and writing.
    pub kvm: RawFd,
    /// An uncompressed kernel, for reading. Not read by a machine that is restored.
    pub kernel: RawFd,
    /// The guest image, for reading.
    pub image: RawFd,
    /// Connected to the file server: its front end. With `fs` only.
    pub fs: Option<RawFd>,
    /// The same of the vsock device. With `vsock` only.
    pub vsock: Option<RawFd>,
    /// Files of saved machines.
    #[serde(default)]
    pub snapshot: SnapshotDescriptors,
    /// What the guest's kernel prints is written here: a pipe or socket; what does not fit is lost.
    pub console: RawFd,
    /// One end of a stream socket pair: the control API (`isopod-control`) is served on it.
    pub control: RawFd,
    /// A pipe or socket whose other end only the owner of the pod holds: when it closes, the monitor
    /// ends.
    pub lifeline: RawFd,
}
