//! A guest driver behind virtio-mmio registers: it brings a device up as Linux does, or piecewise for
//! tests that misbehave.

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use isopod_memory::GuestMemoryHandle;
use virtio_bindings::virtio_mmio as register;
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

use super::{DriverQueue, GuestRam};
use crate::{
    Control, Device, feature,
    transport::{MmioTransport, TransportState, Wiring},
};

/// How long a test waits for a device before it fails; a busy machine may take its time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One device's window, the memory of its guest, and its interrupt.
pub struct MmioDriver {
    /// The registers.
    pub transport: MmioTransport,
    /// The guest's memory.
    pub ram: GuestRam,
    /// Why the device failed, each time that it did.
    pub failures: Arc<Mutex<Vec<String>>>,
    line: EventFd,
    line_events: Epoll,
}

impl MmioDriver {
    /// Attaches a device to a guest of 16 MiB.
    pub fn attach<D: Device>(device: D) -> (Self, Control<D>) {
        Self::attach_to(GuestRam::new(16 << 20), device)
    }

    /// Attaches a device to a guest with this memory.
    pub fn attach_to<D: Device>(ram: GuestRam, device: D) -> (Self, Control<D>) {
        let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let failures = Arc::new(Mutex::new(Vec::new()));
        let reasons = Arc::clone(&failures);
        let wiring = Wiring {
            memory: GuestMemoryHandle::new(ram.memory.clone()),
            interrupt: line.try_clone().expect("an eventfd"),
            on_failure: Box::new(move |error| {
                reasons.lock().expect("no panic").push(error.to_string());
            }),
        };
        let (transport, control) =
            MmioTransport::attach("test", device, wiring, || ()).expect("a thread");
        let line_events = Epoll::new().expect("epoll");
        let event = EpollEvent::new(EventSet::IN, 0);
        line_events
            .ctl(ControlOperation::Add, line.as_raw_fd(), event)
            .expect("watch the interrupt");
        let driver = Self {
            transport,
            ram,
            failures,
            line,
            line_events,
        };
        (driver, control)
    }

    /// Reads a register.
    pub fn read(&self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(offset.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register.
    pub fn write(&self, offset: u32, value: u32) {
        self.transport.write(offset.into(), &value.to_le_bytes());
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.read(register::VIRTIO_MMIO_STATUS)
    }

    /// Adds status bits as Linux does: to those read.
    pub fn add_status(&self, bits: u32) {
        self.write(register::VIRTIO_MMIO_STATUS, self.status() | bits);
    }

    /// Resets the device.
    pub fn reset(&self) {
        self.write(register::VIRTIO_MMIO_STATUS, 0);
    }

    /// What the device offers.
    pub fn device_features(&self) -> u64 {
        let word = |select| {
            self.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(register::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        word(0) | (word(1) << 32)
    }

    /// From reset to `FEATURES_OK` with exactly these features and `VERSION_1`; whether the device
    /// took them.
    pub fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.add_status(1);
        self.add_status(2);
        let features = features | feature::VERSION_1;
        for (select, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES, word);
        }
        self.add_status(8);
        self.status() & 8 != 0
    }

    /// Sets one queue up; its driver's side.
    pub fn add_queue(&mut self, index: u32, size: u16, event_idx: bool) -> DriverQueue {
        let queue = DriverQueue::new(&mut self.ram, size, event_idx);
        self.set_up_queue(index, size.into(), &queue);
        queue
    }

    /// Writes a queue's registers.
    pub fn set_up_queue(&self, index: u32, size: u32, queue: &DriverQueue) {
        self.write(register::VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(register::VIRTIO_MMIO_QUEUE_NUM, size);
        for (low, address) in [
            (register::VIRTIO_MMIO_QUEUE_DESC_LOW, queue.desc_table),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.avail_ring),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, queue.used_ring),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Brings the device up with these features and queues of these sizes.
    pub fn start(&mut self, features: u64, sizes: &[u16]) -> Vec<DriverQueue> {
        assert!(self.negotiate(features), "the device refuses {features:#x}");
        let event_idx = features & feature::EVENT_IDX != 0;
        let queues = (0..)
            .zip(sizes)
            .map(|(index, size)| self.add_queue(index, *size, event_idx))
            .collect();
        self.add_status(4);
        queues
    }

    /// Tells the device of new buffers.
    pub fn notify(&self, queue: u32) {
        self.write(register::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    /// Waits for an interrupt for this reason (and perhaps others), which it acknowledges; fails the
    /// test if none comes.
    pub fn interrupt(&self, reason: u32) {
        let reasons = || self.interrupt_within(Duration::from_millis(100));
        self.until(|| reasons().filter(|reasons| reasons & reason != 0));
    }

    /// Waits for the interrupt and acknowledges it; its reasons, or `None` if none comes in time.
    pub fn interrupt_within(&self, time: Duration) -> Option<u32> {
        let mut events = [EpollEvent::default()];
        let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        match self.line_events.wait(milliseconds, &mut events) {
            Ok(0) => return None,
            Ok(_) => {}
            // A signal of the test's runner.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return None,
            Err(error) => panic!("wait for the interrupt: {error}"),
        }
        let _ = self.line.read();
        let reasons = self.read(register::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(register::VIRTIO_MMIO_INTERRUPT_ACK, reasons);
        Some(reasons)
    }

    /// Waits until `done` holds, looking again after each interrupt; fails the test if it never does.
    pub fn until<T>(&self, mut done: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = done() {
                return value;
            }
            assert!(Instant::now() < end, "the device does not answer");
            let _ = self.interrupt_within(Duration::from_millis(20));
        }
    }

    /// Waits for an answered chain.
    pub fn used(&self, queue: &mut DriverQueue) -> super::Used {
        self.until(|| queue.take_used())
    }

    /// A configuration space's first bytes.
    pub fn config(&self, bytes: usize) -> Vec<u8> {
        let mut config = vec![0; bytes];
        for (n, byte) in config.iter_mut().enumerate() {
            let offset = u64::from(register::VIRTIO_MMIO_CONFIG) + n as u64;
            self.transport.read(offset, std::slice::from_mut(byte));
        }
        config
    }

    /// Pauses and saves the device.
    pub fn save(&self) -> TransportState {
        self.transport.pause().expect("the device's thread");
        self.transport.save().expect("the device's thread")
    }

    /// The same guest with another device, which takes on what was saved.
    pub fn restore<D: Device>(self, device: D, state: TransportState) -> (Self, Control<D>) {
        let (driver, control) = Self::attach_to(self.ram, device);
        driver.transport.restore(state).expect("the same device");
        driver.transport.resume().expect("the device's thread");
        (driver, control)
    }
}
