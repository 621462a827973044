//! One virtual machine.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Everything that distinguishes one VM from another. Identities (tag, context id) are fixed here;
/// nobody asks the guest where a device landed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// For logs and process names; the pod's id.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: CpuConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// Mebibytes that can be added to it while the machine runs.
    pub spare_memory_mib: u64,
    /// What boots.
    pub kernel: KernelConfig,
    /// The guest image: an EROFS file, attached read-only as the root disk.
    pub image: PathBuf,
    /// The pod's shared directory.
    pub fs: FsConfig,
    /// The channel to the agent.
    pub vsock: VsockConfig,
}

/// Virtual CPUs: all `max` are present at boot, `boot` of them online.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// Online at boot; at least 1.
    pub boot: u32,
    /// Present; at least `boot`.
    pub max: u32,
}

/// Guest memory, backed by a memfd that device back ends map too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// Mebibytes.
    pub size_mib: u64,
    /// Back with 2 MiB huge pages.
    pub huge_pages: bool,
}

/// An uncompressed ELF `vmlinux` and its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// The file.
    pub path: PathBuf,
    /// Parameters in order, without those that an engine adds for its own hardware.
    pub command_line: Vec<String>,
}

/// The virtio-fs device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// What the guest mounts it by; at most 36 bytes (virtio 1.2, 5.11.4).
    pub tag: String,
    /// Request queues, besides the high-priority queue.
    pub request_queues: u16,
    /// Descriptors per queue, a power of two.
    pub queue_size: u16,
}

/// The virtio-vsock device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id.
    pub guest_cid: u32,
}
