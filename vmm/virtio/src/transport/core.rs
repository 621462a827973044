//! The rules of virtio 1.2 that every transport has in common.
//!
//! ```text
//!                                                 features refused: the bit stays 0
//!                                                   +------+
//!                                                   v      |
//!   reset --> ACKNOWLEDGE --> DRIVER --> FEATURES_OK? -----+
//!     ^                                      |  queues may be set up, until:
//!     |                                      v
//!     |                                  DRIVER_OK  (device active; queues and features frozen)
//!     |                                      |
//!     |    device cannot go on: NEEDS_RESET  |  driver gives up, in any state: FAILED
//!     +------ status := 0, in any state -----+
//! ```
//!
//! A driver that breaks a rule is counted and not obeyed; nothing that it writes has an effect that
//! the rules do not give it.

use std::sync::{Arc, atomic::Ordering};

use serde::{Deserialize, Serialize};
use virtio_queue::Queue;

use super::{
    Attached, SavedDevice,
    registers::{Half, RegistersState, Ring, Status, feature_word, set_half},
};
use crate::{
    DeviceType, QueueState, feature,
    shared::Shared,
    worker::{RestoreError, WorkerGone},
};

/// The version of [`TransportState`] that is written here.
const STATE_VERSION: u32 = 1;

/// A device and its registers as data that can be saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    /// Of this record's form.
    pub version: u32,
    /// Which kind of device it is.
    pub device_type: u32,
    /// What the driver has written.
    pub registers: RegistersState,
    /// Reasons for an interrupt that the driver has not acknowledged.
    pub interrupt_status: u32,
    /// How often the configuration space has changed.
    pub config_generation: u32,
    /// Whether the device waits for a reset.
    pub needs_reset: bool,
    /// The device's own.
    pub device: serde_json::Value,
}

/// A saved device does not fit this one.
#[derive(Debug, thiserror::Error)]
pub enum TransportStateError {
    /// Written by a newer isopod.
    #[error("the state has version {0}, only {STATE_VERSION} is known")]
    Version(u32),
    /// Of another kind, or shape.
    #[error("the saved device differs in {0}")]
    Differs(&'static str),
    /// A queue that no driver could have set up.
    #[error(transparent)]
    Queue(#[from] crate::QueueStateError),
    /// The device refused its part.
    #[error(transparent)]
    Device(#[from] RestoreError),
}

/// One device's registers and the rules for them.
pub(crate) struct Core {
    device_type: DeviceType,
    offered: u64,
    shared: Arc<Shared>,
    device: Box<dyn Attached>,
    registers: RegistersState,
}

impl Core {
    pub fn new(
        device_type: DeviceType,
        features: u64,
        queue_sizes: &[u16],
        shared: Arc<Shared>,
        device: Box<dyn Attached>,
    ) -> Self {
        Self {
            device_type,
            offered: features | feature::VERSION_1,
            shared,
            device,
            registers: RegistersState::new(queue_sizes),
        }
    }

    pub fn device(&self) -> &dyn Attached {
        self.device.as_ref()
    }

    fn refuse(&self) {
        self.shared.count_register_error();
    }

    // Features

    pub fn device_features(&self) -> u32 {
        feature_word(self.offered, self.registers.device_features_select)
    }

    pub fn select_device_features(&mut self, word: u32) {
        self.registers.device_features_select = word;
    }

    pub fn select_driver_features(&mut self, word: u32) {
        self.registers.driver_features_select = word;
    }

    pub fn set_driver_features(&mut self, value: u32) {
        let status = self.registers.status();
        if !status.contains(Status::DRIVER)
            || status.intersects(Status::FEATURES_OK | Status::FAILED)
        {
            return self.refuse();
        }
        let half = match self.registers.driver_features_select {
            0 => Half::Low,
            1 => Half::High,
            // No such features exist: none of them can be accepted.
            _ if value == 0 => return,
            _ => return self.refuse(),
        };
        set_half(&mut self.registers.driver_features, half, value);
    }

    // Queues

    pub fn select_queue(&mut self, index: u32) {
        self.registers.queue_select = index;
    }

    /// 0 says that there is no such queue.
    pub fn queue_max_size(&self) -> u32 {
        self.registers.queue().map_or(0, |q| q.max_size.into())
    }

    pub fn set_queue_size(&mut self, size: u32) {
        match self.registers.queue_to_configure() {
            // A size that is none keeps the queue from ever being ready.
            Some(queue) => queue.size = u16::try_from(size).unwrap_or(0),
            None => self.refuse(),
        }
    }

    pub fn set_ring_address(&mut self, ring: Ring, half: Half, value: u32) {
        let Some(queue) = self.registers.queue_to_configure() else {
            return self.refuse();
        };
        let register = match ring {
            Ring::Descriptors => &mut queue.desc_table,
            Ring::Available => &mut queue.avail_ring,
            Ring::Used => &mut queue.used_ring,
        };
        set_half(register, half, value);
    }

    pub fn queue_ready(&self) -> u32 {
        self.registers.queue().is_some_and(|q| q.ready).into()
    }

    /// A driver may also take a queue back before the device runs; afterwards only a reset does.
    pub fn set_queue_ready(&mut self, value: u32) {
        let status = self.registers.status();
        let selected = usize::try_from(self.registers.queue_select).unwrap_or(usize::MAX);
        match value {
            1 => match self.registers.queue_to_configure() {
                Some(queue) if Queue::try_from(*queue).is_ok() => queue.ready = true,
                Some(_) | None => self.refuse(),
            },
            0 => match self.registers.queues.get_mut(selected) {
                Some(queue) if !status.contains(Status::DRIVER_OK) => queue.ready = false,
                Some(_) | None => self.refuse(),
            },
            _ => self.refuse(),
        }
    }

    // Status

    pub fn status(&self) -> u32 {
        let mut status = self.registers.status();
        if self.shared.needs_reset.load(Ordering::SeqCst) {
            status |= Status::NEEDS_RESET;
        }
        status.bits().into()
    }

    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let old = self.registers.status();
        let wanted = u8::try_from(value).ok().and_then(Status::from_bits);
        // A driver that adds a bit writes back what it read, the device's own bit included.
        let Some(wanted) = wanted.map(|wanted| wanted - Status::NEEDS_RESET) else {
            return self.refuse();
        };
        if !wanted.contains(old) {
            return self.refuse();
        }
        let new = wanted - old;
        if new.contains(Status::FAILED) {
            self.registers.set_status(old | Status::FAILED);
            return self.stop();
        }
        for (bit, after) in [
            (Status::ACKNOWLEDGE, Status::empty()),
            (Status::DRIVER, Status::ACKNOWLEDGE),
            (Status::FEATURES_OK, Status::DRIVER),
            (Status::DRIVER_OK, Status::FEATURES_OK),
        ] {
            if new.contains(bit) && !self.step(bit, after) {
                return self.refuse();
            }
        }
    }

    /// One bit more, if it is its turn.
    fn step(&mut self, bit: Status, after: Status) -> bool {
        let status = self.registers.status();
        if status.contains(Status::FAILED) || !status.contains(after) {
            return false;
        }
        if bit == Status::FEATURES_OK && !self.features_fit() {
            return false;
        }
        self.registers.set_status(status | bit);
        if bit == Status::DRIVER_OK {
            self.activate();
        }
        true
    }

    fn features_fit(&self) -> bool {
        let accepted = self.registers.driver_features;
        accepted & !self.offered == 0 && accepted & feature::VERSION_1 != 0
    }

    fn activate(&mut self) {
        let event_idx = self.registers.driver_features & feature::EVENT_IDX != 0;
        let queues = self.registers.queues.iter().map(|queue| {
            let as_offered = RegistersState::new(&[queue.max_size]).queues;
            let state = match queue.ready {
                true => Some(*queue),
                // What was left half-written does not count.
                false => as_offered.first().copied(),
            };
            let state = state.unwrap_or(*queue);
            Queue::try_from(QueueState { event_idx, ..state })
        });
        match queues.collect() {
            Ok(queues) => self.start(queues),
            // Each was checked when it became ready.
            Err(_) => self.refuse(),
        }
    }

    fn start(&mut self, queues: Vec<Queue>) {
        let features = self.registers.driver_features;
        self.settle(self.device.activate(features, queues));
    }

    fn stop(&mut self) {
        self.settle(self.device.reset());
    }

    fn settle(&self, done: Result<(), WorkerGone>) {
        if done.is_err() {
            self.shared.needs_reset.store(true, Ordering::SeqCst);
        }
    }

    pub fn reset(&mut self) {
        let Self {
            device_type: _,
            offered: _,
            shared,
            device,
            registers,
        } = self;
        registers.reset();
        shared.needs_reset.store(false, Ordering::SeqCst);
        let stopped = device.reset();
        shared.interrupt.set_status(0);
        self.settle(stopped);
    }

    // Configuration space

    pub fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let status = self.registers.status();
        let end = offset.checked_add(bytes.len());
        let inside = end.is_some_and(|end| end <= self.shared.config().bytes.len());
        // A driver must have negotiated what the space contains before it writes (3.1.1).
        if !inside || !status.contains(Status::FEATURES_OK) || status.contains(Status::FAILED) {
            return self.refuse();
        }
        self.settle(self.device.write_config(offset, bytes));
    }

    // As data

    /// The device must be paused, and the VM's CPUs stopped.
    pub fn save(&self) -> Result<TransportState, WorkerGone> {
        let SavedDevice { queues, state } = self.device.save()?;
        let mut registers = self.registers.clone();
        if let Some(queues) = queues {
            registers.queues = queues;
        }
        Ok(TransportState {
            version: STATE_VERSION,
            device_type: self.device_type as u32,
            registers,
            interrupt_status: self.shared.interrupt.status(),
            config_generation: self.shared.config().generation,
            needs_reset: self.shared.needs_reset.load(Ordering::SeqCst),
            device: state,
        })
    }

    /// Takes on a saved device; it is paused afterwards. To be called once, before any access.
    pub fn restore(&mut self, state: TransportState) -> Result<(), TransportStateError> {
        let TransportState {
            version,
            device_type,
            registers,
            interrupt_status,
            config_generation,
            needs_reset,
            device,
        } = state;
        if version != STATE_VERSION {
            return Err(TransportStateError::Version(version));
        }
        self.check_same_kind(device_type, &registers)?;
        self.device.restore(device)?;
        self.registers = registers;
        self.shared.config().generation = config_generation;
        let active = self.registers.status().contains(Status::DRIVER_OK)
            && !self.registers.status().contains(Status::FAILED)
            && !needs_reset;
        if active {
            let queues = self.registers.queues.iter();
            let queues = queues
                .map(|q| Queue::try_from(*q))
                .collect::<Result<_, _>>()?;
            self.start(queues);
        }
        self.shared.interrupt.set_status(interrupt_status);
        if interrupt_status != 0 {
            // It may have been on its way to the processors when they were saved. Once too often is
            // harmless: the driver finds nothing to do.
            self.shared.interrupt.raise(0);
        }
        if needs_reset {
            self.shared.needs_reset.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    fn check_same_kind(
        &self,
        device_type: u32,
        registers: &RegistersState,
    ) -> Result<(), TransportStateError> {
        let sizes = |queues: &[QueueState]| queues.iter().map(|q| q.max_size).collect::<Vec<_>>();
        let differs = if device_type != self.device_type as u32 {
            "its type"
        } else if registers.driver_features & !self.offered != 0 {
            "its features"
        } else if sizes(&registers.queues) != sizes(&self.registers.queues) {
            "its queues"
        } else if Status::from_bits(registers.status).is_none() {
            "its status"
        } else {
            return Ok(());
        };
        Err(TransportStateError::Differs(differs))
    }
}
