//! What every virtio device is to its transport.

use std::os::fd::BorrowedFd;

use isopod_memory::GuestMemoryHandle;
use serde::{Serialize, de::DeserializeOwned};
use smallvec::SmallVec;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::{Rings, queue::QueueError};

/// The kind of a device: its number in virtio 1.2, 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Memory balloon ("traditional", the one in use).
    Balloon = 5,
    /// Socket device.
    Vsock = 19,
    /// Memory device.
    Memory = 24,
    /// File system device.
    FileSystem = 26,
    /// Persistent memory.
    Pmem = 27,
}

/// A device's configuration space as bytes, little-endian fields.
pub type ConfigSpace = SmallVec<[u8; 64]>;

/// Why [`Device::handle`] is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver notified the device of this queue (or may have: spurious ones are allowed).
    Queue(usize),
    /// [`Device::host_events`] is readable.
    Host,
}

/// A device cannot go on until its driver resets it. The driver is told by `DEVICE_NEEDS_RESET`, the
/// log once.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's rings cannot be used.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which.
        index: usize,
        /// What is wrong with them.
        source: QueueError,
    },
    /// The driver set up fewer queues than the device can work with.
    #[error("queue {0} is needed and was not set up")]
    MissingQueue(usize),
    /// Something of the host that the device needs failed it.
    #[error("cannot {act}: {source}")]
    Host {
        /// What was attempted.
        act: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The process that serves the device is gone or broke its protocol.
    #[error("the back end: {0}")]
    BackEnd(String),
}

/// A saved device that this one cannot take the place of.
#[derive(Debug, thiserror::Error)]
#[error("the saved device differs in {field}: saved {saved}, here {here}")]
pub struct DeviceStateError {
    /// What differs.
    pub field: &'static str,
    /// In the state.
    pub saved: String,
    /// In this device.
    pub here: String,
}

/// A device's own figures, by name.
pub type DeviceCounters = Vec<(&'static str, u64)>;

/// What a driver has negotiated and set up, at the moment it sets `DRIVER_OK`.
pub struct Activation<'a> {
    /// Both sides' features.
    pub features: u64,
    /// The guest's memory.
    pub memory: &'a GuestMemoryHandle,
    /// Every queue; those that the driver did not set up are not `ready`.
    pub queues: &'a [Queue],
    /// The eventfd that a queue's notifications arrive at, in the queues' order.
    pub doorbells: &'a [EventFd],
    /// The eventfd that raises the device's interrupt.
    pub interrupt: &'a EventFd,
}

impl Activation<'_> {
    /// Whether a feature bit (a mask) was negotiated.
    pub fn negotiated(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// A device as its transport drives it; always on one thread, its own ([`crate::Worker`]).
///
/// ```text
///            activate                        handle*
/// inactive ------------> active  (rings lent for one round of work at a time)
///     ^                    |
///     +------ reset -------+
/// ```
///
/// An inactive device is lent no rings and so cannot touch the guest's memory. Resources that exist
/// only while a driver runs belong into the device's own active variant, which
/// [`reset`](Self::reset) drops.
pub trait Device: Send + 'static {
    /// The device as data that can be saved, without the transport's part (registers, rings).
    type State: Serialize + DeserializeOwned + Send;

    /// Which device this is.
    fn device_type(&self) -> DeviceType;

    /// Feature bits of the device's own kind, and of [`crate::feature`] what it supports beside
    /// `VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// The most descriptors of each queue, powers of two up to 32768. Constant.
    fn queue_sizes(&self) -> SmallVec<[u16; 4]>;

    /// The configuration space. When it is another after a round of work or an act of the monitor,
    /// the driver is told.
    fn config(&self) -> ConfigSpace {
        ConfigSpace::new()
    }

    /// The driver wrote into the configuration space. What is not writable is to be ignored.
    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    /// Whether another process serves the queues; [`handle`](Self::handle) then gets only
    /// [`Event::Host`].
    fn served_elsewhere(&self) -> bool {
        false
    }

    /// The driver is ready. Every queue's [`Event::Queue`] follows.
    ///
    /// # Errors
    /// When the device cannot work in the way that the driver set it up.
    fn activate(&mut self, _activation: &Activation<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Does what the event allows, in a bounded time and without blocking for the guest or for peers.
    ///
    /// # Errors
    /// When the device cannot go on; a request that is malformed is answered instead, and counted.
    fn handle(&mut self, event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError>;

    /// Forgets the driver: releases what it gave, finishes or gives up what runs for it. Once this
    /// returns nothing touches the guest's memory any more.
    fn reset(&mut self);

    /// A descriptor that is readable when [`Event::Host`] is due; watched while the device is active
    /// and asked for after [`activate`](Self::activate). Level-triggered: the device itself mutes
    /// what it cannot serve now.
    fn host_events(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Waits (bounded) for what runs outside of `handle`, so that nothing of the device touches the
    /// guest's memory until [`resume`](Self::resume). Before a save.
    ///
    /// # Errors
    /// When the device cannot go on.
    fn pause(&mut self, _rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Goes on after [`pause`](Self::pause), or after a restored device was activated. Every queue's
    /// [`Event::Queue`] follows.
    ///
    /// # Errors
    /// When the device cannot go on.
    fn resume(&mut self, _activation: &Activation<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The device as data. It is paused or inactive.
    fn save(&self) -> Self::State;

    /// Takes on a saved device's state; called before [`activate`](Self::activate).
    ///
    /// # Errors
    /// When the state is another kind of device's, such as one of another size.
    fn restore(&mut self, state: Self::State) -> Result<(), DeviceStateError>;

    /// What happened so far, for metrics.
    fn counters(&self) -> DeviceCounters {
        DeviceCounters::new()
    }
}
