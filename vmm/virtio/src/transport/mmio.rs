//! virtio over MMIO, version 2 (virtio 1.2, 4.2): offsets and widths.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use isopod_memory::GuestMemoryHandle;
use virtio_bindings::virtio_mmio as register;
use vmm_sys_util::eventfd::EventFd;

use super::{
    Attached,
    core::{Core, TransportState, TransportStateError},
    registers::{Half, Ring},
};
use crate::{
    Device, DeviceMetrics,
    shared::{INTERRUPT_CONFIG, INTERRUPT_USED, Shared},
    station::{OnFailure, Station},
    worker::{Control, Worker, WorkerGone},
};

/// Bytes of a device's window in guest-physical memory.
pub const WINDOW: u64 = 0x1000;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "isop": a driver may use it to tell devices of one make.
const VENDOR: u32 = 0x706f_7369;
/// 4.2.2: the length of a shared memory region that does not exist.
const NO_REGION: u32 = u32::MAX;

const CONFIG: u64 = register::VIRTIO_MMIO_CONFIG as u64;

/// What a device is connected to.
pub struct Wiring {
    /// The guest's memory.
    pub memory: GuestMemoryHandle,
    /// Raises the device's interrupt (edge): usually registered as an irqfd.
    pub interrupt: EventFd,
    /// Called, on the device's thread, when the device cannot go on before a reset. It must not ask
    /// anything of the transport: a vCPU may be waiting for this very thread.
    pub on_failure: OnFailure,
}

/// A device could not be put behind its registers.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No thread, eventfd or epoll.
    #[error("start the device's thread: {0}")]
    Thread(#[from] io::Error),
    /// The saved device is another.
    #[error("restore the device: {0}")]
    State(#[from] TransportStateError),
}

/// One queue's notification, for `KVM_IOEVENTFD`: a write of 4 bytes of `value` at `offset` of the
/// window.
#[derive(Clone, Copy, Debug)]
pub struct Doorbell<'a> {
    /// Within the window.
    pub offset: u64,
    /// The value to match; the queue's index.
    pub value: u32,
    /// To be signalled.
    pub eventfd: &'a EventFd,
}

/// The window of one device. Shared by all vCPUs; any access is answered.
pub struct MmioTransport {
    device_type: u32,
    served_elsewhere: bool,
    shared: Arc<Shared>,
    core: Mutex<Core>,
}

impl MmioTransport {
    /// Starts the device's thread and puts the device, inactive, behind registers.
    ///
    /// `at_start` runs first on the new thread, which is called `name` (the first 15 bytes show).
    ///
    /// # Errors
    /// When the host has no thread or descriptor left.
    pub fn attach<D: Device>(
        name: &str,
        device: D,
        wiring: Wiring,
        at_start: impl FnOnce() + Send + 'static,
    ) -> Result<(Self, Control<D>), AttachError> {
        let Wiring {
            memory,
            interrupt,
            on_failure,
        } = wiring;
        let sizes = device.queue_sizes();
        let shared = Arc::new(Shared::new(sizes.len(), device.config(), interrupt)?);
        let device_type = device.device_type();
        let features = device.features();
        let served_elsewhere = device.served_elsewhere();
        let station = Station::new(device, Arc::clone(&shared), memory, on_failure)?;
        let worker = Arc::new(Worker::spawn(name, station, at_start)?);
        let attached: Box<dyn Attached> = Box::new(Arc::clone(&worker));
        let core = Core::new(device_type, features, &sizes, Arc::clone(&shared), attached);
        let transport = Self {
            device_type: device_type as u32,
            served_elsewhere,
            shared,
            core: Mutex::new(core),
        };
        Ok((transport, Control(worker)))
    }

    /// Takes on a saved device's state, before the first access of a vCPU. The device is paused
    /// until [`resume`](Self::resume).
    ///
    /// # Errors
    /// When the state is another device's.
    pub fn restore(&self, state: TransportState) -> Result<(), AttachError> {
        Ok(self.core().restore(state)?)
    }

    /// The notifications of all queues, to be registered with KVM.
    pub fn doorbells(&self) -> impl Iterator<Item = Doorbell<'_>> {
        let doorbells = self.shared.doorbells.iter().enumerate();
        doorbells.map(|(index, eventfd)| Doorbell {
            offset: register::VIRTIO_MMIO_QUEUE_NOTIFY.into(),
            value: index as u32,
            eventfd,
        })
    }

    /// A vCPU reads `bytes.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        bytes.fill(0);
        if offset >= CONFIG {
            return self.read_config(offset - CONFIG, bytes);
        }
        let value = u32::try_from(offset)
            .ok()
            .filter(|_| bytes.len() == 4)
            .and_then(|offset| self.read_register(offset));
        match value {
            Some(value) => bytes.copy_from_slice(&value.to_le_bytes()),
            // A width or an offset that no register has (4.2.2.2).
            None => self.shared.count_register_error(),
        }
    }

    /// A vCPU writes `bytes` at `offset` of the window.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        if offset >= CONFIG {
            return match usize::try_from(offset - CONFIG) {
                Ok(offset) if bytes.len() <= 8 => self.core().write_config(offset, bytes),
                Ok(_) | Err(_) => self.shared.count_register_error(),
            };
        }
        let written = <[u8; 4]>::try_from(bytes)
            .ok()
            .zip(u32::try_from(offset).ok())
            .is_some_and(|(value, offset)| self.write_register(offset, u32::from_le_bytes(value)));
        if !written {
            self.shared.count_register_error();
        }
    }

    fn read_register(&self, offset: u32) -> Option<u32> {
        use register::*;
        Some(match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_type,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => self.core().device_features(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.core().queue_max_size(),
            VIRTIO_MMIO_QUEUE_READY => self.core().queue_ready(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status(),
            VIRTIO_MMIO_STATUS => self.core().status(),
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            VIRTIO_MMIO_CONFIG_GENERATION => self.shared.config().generation,
            _ => return None,
        })
    }

    fn write_register(&self, offset: u32, value: u32) -> bool {
        use register::*;
        let (ring, half) = match offset {
            VIRTIO_MMIO_QUEUE_NOTIFY => return self.ring_doorbell(value),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.shared.interrupt.acknowledge(value);
                return value & !(INTERRUPT_USED | INTERRUPT_CONFIG) == 0;
            }
            VIRTIO_MMIO_SHM_SEL => return true,
            VIRTIO_MMIO_QUEUE_DESC_LOW => (Ring::Descriptors, Half::Low),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => (Ring::Descriptors, Half::High),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => (Ring::Available, Half::Low),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => (Ring::Available, Half::High),
            VIRTIO_MMIO_QUEUE_USED_LOW => (Ring::Used, Half::Low),
            VIRTIO_MMIO_QUEUE_USED_HIGH => (Ring::Used, Half::High),
            _ => return self.write_other(offset, value),
        };
        self.core().set_ring_address(ring, half, value);
        true
    }

    fn write_other(&self, offset: u32, value: u32) -> bool {
        use register::*;
        let mut core = self.core();
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => core.select_device_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES => core.set_driver_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => core.select_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => core.select_queue(value),
            VIRTIO_MMIO_QUEUE_NUM => core.set_queue_size(value),
            VIRTIO_MMIO_QUEUE_READY => core.set_queue_ready(value),
            VIRTIO_MMIO_STATUS => core.set_status(value),
            _ => return false,
        }
        true
    }

    fn ring_doorbell(&self, queue: u32) -> bool {
        let index = usize::try_from(queue).unwrap_or(usize::MAX);
        let doorbell = self.shared.doorbells.get(index);
        // One that is full rings already.
        doorbell.map(|doorbell| doorbell.write(1)).is_some()
    }

    fn interrupt_status(&self) -> u32 {
        let status = self.shared.interrupt.status();
        // A back end that raises the line by itself cannot set the bit: it is always set then, and a
        // driver that finds nothing used goes on.
        if self.served_elsewhere {
            status | INTERRUPT_USED
        } else {
            status
        }
    }

    fn read_config(&self, offset: u64, bytes: &mut [u8]) {
        let config = self.shared.config();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = config.bytes.get(start..).unwrap_or_default();
        let shown = there.len().min(bytes.len());
        for (byte, value) in bytes.iter_mut().zip(there) {
            *byte = *value;
        }
        if shown < bytes.len() {
            drop(config);
            self.shared.count_register_error();
        }
    }

    /// Stops the device between two rounds of work, without the driver noticing.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub fn pause(&self) -> Result<(), WorkerGone> {
        self.core().device().pause()
    }

    /// Goes on after [`pause`](Self::pause) or [`restore`](Self::restore).
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub fn resume(&self) -> Result<(), WorkerGone> {
        self.core().device().resume()
    }

    /// The paused device as data.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub fn save(&self) -> Result<TransportState, WorkerGone> {
        self.core().save()
    }

    /// Back to power-on: for a VM that reboots.
    pub fn reset(&self) {
        self.core().reset();
    }

    /// What the device did.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub fn metrics(&self) -> Result<DeviceMetrics, WorkerGone> {
        self.core().device().metrics()
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
