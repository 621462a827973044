//! The registers as plain data, and the rules that concern nothing but them.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::QueueState;

bitflags! {
    /// The device status (virtio 1.2, 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        const ACKNOWLEDGE = 1;
        const DRIVER = 2;
        const DRIVER_OK = 4;
        const FEATURES_OK = 8;
        /// Only the device sets it; see [`crate::shared::Shared::needs_reset`].
        const NEEDS_RESET = 64;
        const FAILED = 128;
    }
}

/// What a driver has written, besides the configuration space; a record that can be saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistersState {
    /// The status bits, without `DEVICE_NEEDS_RESET`.
    pub status: u8,
    /// Which 32 feature bits of the device are read.
    pub device_features_select: u32,
    /// Which 32 feature bits of the driver are written.
    pub driver_features_select: u32,
    /// What the driver accepts.
    pub driver_features: u64,
    /// Which queue the queue registers are of.
    pub queue_select: u32,
    /// Every queue: what the driver set up or, in a saved active device, how far it is.
    pub queues: Vec<QueueState>,
}

/// The three rings of a queue, in the order of their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    Descriptors,
    Available,
    Used,
}

/// Half of a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Low,
    High,
}

impl RegistersState {
    /// As after a reset, of a device with queues of these sizes.
    pub fn new(queue_sizes: &[u16]) -> Self {
        Self {
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: queue_sizes.iter().copied().map(fresh_queue).collect(),
        }
    }

    /// Forgets the driver. Every register is named, so that none is forgotten to be reset.
    pub fn reset(&mut self) {
        let Self {
            status,
            device_features_select,
            driver_features_select,
            driver_features,
            queue_select,
            queues,
        } = self;
        *status = 0;
        *device_features_select = 0;
        *driver_features_select = 0;
        *driver_features = 0;
        *queue_select = 0;
        for queue in queues {
            *queue = fresh_queue(queue.max_size);
        }
    }

    /// The status bits, without `DEVICE_NEEDS_RESET`.
    pub(crate) fn status(&self) -> Status {
        Status::from_bits_truncate(self.status)
    }

    pub(crate) fn set_status(&mut self, status: Status) {
        self.status = status.bits();
    }

    /// The queue that the driver has selected, if there is one.
    pub fn queue(&self) -> Option<&QueueState> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// The selected queue, if it may be configured now: features are negotiated, the device does not
    /// run, and the queue is not ready (virtio 1.2, 3.1.1 and 4.2.2).
    pub fn queue_to_configure(&mut self) -> Option<&mut QueueState> {
        let status = self.status();
        let open = status.contains(Status::FEATURES_OK)
            && !status.intersects(Status::DRIVER_OK | Status::FAILED);
        let queue = self
            .queues
            .get_mut(usize::try_from(self.queue_select).ok()?)?;
        (open && !queue.ready).then_some(queue)
    }
}

fn fresh_queue(max_size: u16) -> QueueState {
    QueueState {
        max_size,
        size: max_size,
        ready: false,
        next_avail: 0,
        next_used: 0,
        event_idx: false,
        desc_table: 0,
        avail_ring: 0,
        used_ring: 0,
    }
}

/// Replaces one half.
pub fn set_half(register: &mut u64, half: Half, value: u32) {
    let value = u64::from(value);
    *register = match half {
        Half::Low => (*register & !0xffff_ffff) | value,
        Half::High => (*register & 0xffff_ffff) | (value << 32),
    };
}

/// The 32 bits of a feature register that a selector names; none beyond 64.
pub fn feature_word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
