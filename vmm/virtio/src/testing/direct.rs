//! A device without a thread: every round of work happens when it is asked for. For fuzzing, where a
//! fault must be found in the very input that made it.

use std::sync::Arc;

use isopod_memory::GuestMemoryHandle;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::GuestRam;
use crate::{Device, DeviceMetrics, Event, shared::Shared, station::Station};

/// A device and its rings, driven by hand.
pub struct Direct<D> {
    station: Station<D>,
}

impl<D: Device> Direct<D> {
    /// An inactive device of this guest.
    pub fn new(ram: &GuestRam, device: D) -> Self {
        let queues = device.queue_sizes().len();
        let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let shared = Shared::new(queues, device.config(), line).expect("eventfds");
        let memory = GuestMemoryHandle::new(ram.memory.clone());
        let station = Station::new(device, Arc::new(shared), memory, Box::new(|_| ()));
        Self {
            station: station.expect("an epoll set"),
        }
    }

    /// What a transport does at `DRIVER_OK`.
    pub fn activate(&mut self, features: u64, queues: Vec<Queue>) {
        self.station.activate(features, queues);
    }

    /// One round of work.
    pub fn handle(&mut self, event: Event) {
        self.station.handle(event);
    }

    /// A write into the configuration space.
    pub fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        self.station.write_config(offset, bytes);
    }

    /// A reset by the driver.
    pub fn reset(&mut self) {
        self.station.reset();
    }

    /// Saves the device and has it take on its own state, as data, again.
    pub fn save_and_restore(&mut self) {
        self.station.pause();
        let (_, state) = self.station.save();
        let state = serde_json::to_value(state).expect("a state is data");
        let state = serde_json::from_value(state).expect("the same form");
        self.station.restore(state).expect("its own state");
        self.station.resume();
    }

    /// An act of the monitor on the device.
    pub fn call<T>(&mut self, act: impl FnOnce(&mut D) -> T) -> T {
        self.station.call(act)
    }

    /// What it did.
    pub fn metrics(&self) -> DeviceMetrics {
        self.station.metrics()
    }
}
