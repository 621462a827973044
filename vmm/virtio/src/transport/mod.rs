//! How a driver reaches a device: registers that it reads and writes from a vCPU.
//!
//! ```text
//!            offset, width               rules, status machine             between rounds of work
//!  vCPU ---> mmio: MmioTransport ------> core: Core ---------------------> Worker<D> ---> device
//!                 |  interrupt status, doorbells, configuration space          |
//!                 +-----------------> Shared <---------------------------------+
//! ```
//!
//! `core` knows the rules that all transports have in common (virtio 1.2, 2 and 3); `mmio` knows
//! offsets and widths (4.2). What a driver does most (notify, ask why it was interrupted, read the
//! configuration) takes no lock that a device's work holds.
//!
//! # For the monitor
//!
//! 1. [`MmioTransport::attach`] takes a device, the guest's memory and an eventfd that is the
//!    irqfd of the device's interrupt; it starts the device's thread.
//! 2. Register each of [`MmioTransport::doorbells`] with `KVM_IOEVENTFD`.
//! 3. Pass what vCPUs do in the device's 4 KiB window to [`MmioTransport::read`] and
//!    [`MmioTransport::write`], from any thread.
//! 4. [`pause`](MmioTransport::pause), [`save`](MmioTransport::save) and
//!    [`resume`](MmioTransport::resume) it as the VM is; all vCPUs are stopped meanwhile.

mod core;
mod mmio;
mod registers;
#[cfg(test)]
mod tests;

use virtio_queue::Queue;

pub use self::{
    core::TransportState,
    mmio::{AttachError, Doorbell, MmioTransport, WINDOW, Wiring},
    registers::RegistersState,
};
use crate::{
    QueueState,
    station::DeviceMetrics,
    worker::{RestoreError, WorkerGone},
};

/// A device behind its thread, as a transport sees it.
pub(crate) trait Attached: Send + Sync {
    fn activate(&self, features: u64, queues: Vec<Queue>) -> Result<(), WorkerGone>;
    /// When it returns, the device touches the guest's memory no more.
    fn reset(&self) -> Result<(), WorkerGone>;
    fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), WorkerGone>;
    fn pause(&self) -> Result<(), WorkerGone>;
    fn resume(&self) -> Result<(), WorkerGone>;
    fn save(&self) -> Result<SavedDevice, WorkerGone>;
    fn restore(&self, state: serde_json::Value) -> Result<(), RestoreError>;
    fn metrics(&self) -> Result<DeviceMetrics, WorkerGone>;
}

/// The device's side of a [`TransportState`].
pub(crate) struct SavedDevice {
    /// The rings' positions, if the device is active.
    pub queues: Option<Vec<QueueState>>,
    pub state: serde_json::Value,
}
