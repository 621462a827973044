//! What a transport and a configuration see of the device, besides the device itself.

use std::path::PathBuf;

use isopod_virtio::{Queue, QueueCounters};
use serde::{Deserialize, Serialize};

/// What distinguishes one vsock device from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id; 3 or more.
    pub guest_cid: u32,
    /// Where the sockets `vsock_P` of host programs are: a guest-initiated connection to port P goes
    /// to `connect_dir/vsock_P`. `.` is the current directory of the thread that calls
    /// [`VsockDevice::handle`](super::VsockDevice::handle).
    pub connect_dir: PathBuf,
}

/// A device as data that can be saved. Connections are not part of it: they do not survive, and the
/// guest is told so by an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// The guest's context id.
    pub guest_cid: u32,
    /// Where the numbering of the host's ports goes on, so that a port is not soon used again.
    pub next_local_port: u32,
}

/// Why [`VsockDevice::handle`](super::VsockDevice::handle) is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The driver notified the device of a queue (any of the three).
    Queue,
    /// The device's own descriptor became readable.
    Host,
}

/// The device's three queues, in the order of their indices. A queue that the driver has not set up,
/// or that the transport has stopped, is simply not `ready`.
pub struct VsockQueues<'a> {
    /// Index 0: packets to the guest.
    pub rx: &'a mut Queue,
    /// Index 1: packets from the guest.
    pub tx: &'a mut Queue,
    /// Index 2: events to the guest.
    pub event: &'a mut Queue,
}

/// Which queues' interrupt to raise.
#[must_use = "the driver waits for its signals"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Queue 0.
    pub rx: bool,
    /// Queue 1.
    pub tx: bool,
    /// Queue 2.
    pub event: bool,
}

/// The device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A context id that is reserved (virtio 1.2, 5.10.4).
    #[error("context id {0} cannot be a guest's")]
    ReservedCid(u32),
    /// The saved device was another guest's.
    #[error("the saved device has context id {saved}, this one {configured}")]
    OtherCid {
        /// In the state.
        saved: u32,
        /// In the configuration.
        configured: u32,
    },
    /// Making or watching the device's descriptors.
    #[error("{act}: {source}")]
    Host {
        /// What was attempted.
        act: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Metrics of the device's queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockQueueCounters {
    /// Queue 0.
    pub rx: QueueCounters,
    /// Queue 1.
    pub tx: QueueCounters,
    /// Queue 2.
    pub event: QueueCounters,
}
