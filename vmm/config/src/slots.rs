//! The devices of a monitor whose back ends may come and go: what the guest sees of each is fixed here,
//! before it boots.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

/// Devices besides those that every machine has. What is left out is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlotsConfig {
    /// A console: the kernel's log once it has drivers, and the port of `isopod debug`.
    pub console: bool,
    /// A balloon: free pages go back to the host by themselves, others when asked for.
    pub balloon: bool,
    /// Mebibytes that the machine can grow by (virtio-mem); a multiple of 128.
    pub hotplug_mib: u64,
    /// Disks, called `blk-0` and so on.
    pub disks: Vec<DiskSlotConfig>,
    /// Network cards, called `net-0` and so on.
    pub nets: Vec<NetSlotConfig>,
}

/// A slot for a disk, empty unless `disk` is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskSlotConfig {
    /// What the guest knows the disk by; at most 20 bytes.
    pub serial: String,
    /// The guest may only read.
    pub read_only: bool,
    /// Requests run side by side, by io_uring.
    pub side_by_side: bool,
    /// At most so much.
    pub rate: RateConfig,
    /// A regular file or block device, opened as the slot wants it.
    pub disk: Option<RawFd>,
}

/// A slot for a network, without a link unless `taps` are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSlotConfig {
    /// The guest's address.
    pub mac: [u8; 6],
    /// The largest packet without its Ethernet header, in bytes.
    pub mtu: u16,
    /// Queue pairs, 1 to 8.
    pub pairs: u16,
    /// What the guest may get.
    #[serde(default)]
    pub receive: RateConfig,
    /// What the guest may send.
    #[serde(default)]
    pub send: RateConfig,
    /// Queues of one tap device, none or one for each pair.
    #[serde(default)]
    pub taps: Vec<RawFd>,
}

/// What a device may do at most; zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateConfig {
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Requests or packets per second.
    pub operations_per_second: u64,
}
