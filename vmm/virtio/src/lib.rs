//! What virtio devices share: queues, descriptor chains, their state as data.
//!
//! Place in the flow: between a transport and a device in `devices`. Every transport holds its rings
//! as a [`Queue`] of the `virtio-queue` crate; for one round of work it lends them to the device,
//! which sees each through a [`LiveQueue`]: pop checked chains, answer them, say at the end whether
//! the driver wants a signal. The same device code so runs behind vhost-user (in `fs`, for QEMU) and
//! behind virtio-mmio ([`transport`], for the monitor).
//!
//! | module | job |
//! |---|---|
//! | `device` | what every [`Device`] is to its transport |
//! | `transport` | registers, status machine, features: what a driver touches |
//! | `worker`, `station` | the device's own thread, and what it owns |
//! | `rings`, `queue`, `chain`, `cursor` | from rings to bounded, checked requests |
//! | `state` | a queue as data that can be saved |
//! | `testing` | a guest driver without a guest |
//!
//! Imported by `devices`, `fs` and the monitor's `machine`. Imports `memory` only.
//!
//! What a guest writes into its rings is hostile until checked here. A malformed chain is counted
//! and answered with nothing written; broken rings stop the queue until the driver resets it;
//! nothing panics and nothing is allocated by a number that the guest chose.
#![forbid(unsafe_code)]

mod chain;
mod cursor;
mod device;
mod queue;
mod rings;
pub mod shared;
mod state;
mod station;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
mod worker;

pub use chain::{Chain, ChainError, ChainLimits};
pub use cursor::{Readable, ShortChain, Writable};
pub use device::{
    Activation, ConfigSpace, Device, DeviceCounters, DeviceError, DeviceStateError, DeviceType,
    Event,
};
pub use queue::{LiveQueue, QueueCounters, QueueError};
pub use rings::{CHAINS_PER_ROUND, ConfigView, Rings};
pub use state::{QueueState, QueueStateError};
pub use station::{DeviceMetrics, OnFailure};
/// A split ring as the transports hold it.
pub use virtio_queue::{Queue, QueueT};
pub use worker::{Control, RestoreError, Worker, WorkerGone};

/// Device-independent feature bits (virtio 1.2, 6), as masks.
pub mod feature {
    use virtio_bindings::{virtio_config, virtio_ring};

    /// Descriptors may point at a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Both sides say at which index they want the next notification.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
}
