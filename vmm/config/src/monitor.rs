//! What one `isopod-vmm` process is told: JSON on its standard input, then end of file.
//!
//! Descriptors are inherited; the configuration names their numbers. It opens nothing itself.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::{CpuConfig, FsConfig, MemoryConfig, SlotsConfig, SnapshotDescriptors, VsockConfig};

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
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: ProtocolConfig,
    /// The kernel's parameters in order, without those of the monitor's own devices.
    pub command_line: Vec<String>,
    /// The host's KVM interprets the guest's supervisor mode; the kernel is told what that takes.
    pub emulated_supervisor: bool,
    /// How the guest gets its image.
    pub root: RootConfig,
    /// The shared directory.
    pub fs: Option<FsConfig>,
    /// The channel to the agent.
    pub vsock: Option<VsockConfig>,
    /// The other devices.
    #[serde(default)]
    pub slots: SlotsConfig,
    /// Whom the monitor runs as, in its jail.
    pub uid: u32,
    /// The same.
    pub gid: u32,
    /// What it inherits.
    pub descriptors: MonitorDescriptors,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProtocolConfig {
    /// By Linux's 64-bit boot protocol.
    #[default]
    Linux64,
    /// By PVH, for a kernel that offers nothing else.
    Pvh,
}

/// How the guest gets its image, which is read-only in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootConfig {
    /// As memory, used in place: all guests share one copy in the host's page cache. Needs a kernel
    /// with `CONFIG_NVDIMM_PFN`.
    #[default]
    Pmem,
    /// As a disk, of which each guest keeps what it reads.
    Blk,
}

/// Numbers of inherited descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The same of the vsock device. With `vsock`, this or `vsock_host`.
    pub vsock: Option<RawFd>,
    /// The host's side of a vsock device that the monitor serves itself.
    #[serde(default)]
    pub vsock_host: Option<VsockHostDescriptors>,
    /// Files of saved machines.
    #[serde(default)]
    pub snapshot: SnapshotDescriptors,
    /// What the guest's kernel prints is written here: a pipe or socket; what does not fit is lost.
    pub console: RawFd,
    /// One end of a stream socket pair: the control API (`isopod-control`) is served on it.
    pub control: RawFd,
    /// One end of a `SOCK_SEQPACKET` pair: descriptors that `Attach` names arrive on it
    /// (`isopod_control::parcel`). Without it nothing can be attached.
    #[serde(default)]
    pub parcels: Option<RawFd>,
    /// A pipe or socket whose other end only the owner of the pod holds: when it closes, the monitor
    /// ends.
    pub lifeline: RawFd,
}

/// How the programs of the host and a vsock device in the monitor meet. The monitor has no path to any
/// of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockHostDescriptors {
    /// A listening stream socket: programs say `CONNECT port\n` on it.
    pub listener: RawFd,
    /// Ports of the host that the guest may connect to, each with one end of a `SOCK_SEQPACKET` pair:
    /// of every connection one end is sent over it, with one byte.
    #[serde(default)]
    pub ports: Vec<(u32, RawFd)>,
}

#[cfg(feature = "testing")]
impl MonitorConfig {
    /// The least that a monitor needs: one processor on whatever KVM there is, the image as a disk. It
    /// inherits from descriptor 3 on, in this order: KVM, kernel, image, console, control, lifeline.
    #[must_use]
    pub fn bare(name: &str, memory_mib: u64, uid: u32) -> Self {
        Self {
            name: name.to_owned(),
            cpus: CpuConfig { boot: 1, max: 1 },
            memory: MemoryConfig {
                size_mib: memory_mib,
                huge_pages: false,
            },
            protocol: ProtocolConfig::default(),
            command_line: vec!["quiet".to_owned()],
            emulated_supervisor: true,
            root: RootConfig::Blk,
            fs: None,
            vsock: None,
            slots: SlotsConfig::default(),
            uid,
            gid: uid,
            descriptors: MonitorDescriptors {
                kvm: 3,
                kernel: 4,
                image: 5,
                fs: None,
                vsock: None,
                vsock_host: None,
                snapshot: SnapshotDescriptors::default(),
                console: 6,
                control: 7,
                parcels: None,
                lifeline: 8,
            },
        }
    }
}
