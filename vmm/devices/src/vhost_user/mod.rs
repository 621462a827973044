//! A device whose queues another process serves (the vhost-user protocol, front end): `isopod-fs`
//! for files.
//!
//! ```text
//!                 negotiate, memory, rings (at DRIVER_OK)
//!   VhostUser  ------------------------------------------>  back end process
//!                                                             |  maps guest memory itself
//!   guest  --doorbell (ioeventfd)---------------------------->|
//!   guest  <--interrupt (irqfd)------------------------------ |
//! ```
//!
//! After the set-up no request passes through this process: KVM signals the back end's eventfd, and
//! the back end KVM's. The back end is trusted no more than the guest: it gets the guest's memory and
//! two eventfds per queue, and what it says is checked. It is not told where that memory is mapped
//! here; rings are named by guest-physical addresses.
//!
//! ```text
//!         activate / resume                reset / pause
//!   Idle ------------------> Serving ----------------------> Idle
//!     \                         \
//!      +-------------------------+---> Lost: the process is gone or broke the protocol; for good
//! ```
//!
//! A back end that dies makes its device fail (`DEVICE_NEEDS_RESET`) with a reason, and every later
//! activation too: its state (open files, connections) has died with it, so that a new process could
//! only pretend to go on. One that hangs is cut off by the [`Watchdog`] and is lost in the same way:
//! whoever waits for the device (a vCPU at its registers, the monitor) waits for a bounded time.

mod back_end;
mod config;
mod watchdog;

use std::{
    os::{fd::BorrowedFd, unix::net::UnixStream},
    sync::atomic::Ordering,
    time::Duration,
};

use isopod_memory::{Bytes, GuestAddress, GuestMemory};
use isopod_virtio::{
    Activation, ConfigSpace, Device, DeviceError, DeviceStateError, DeviceType, Event, Queue,
    QueueT, Rings, feature,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use back_end::{BackEnd, Serving};

pub use config::VhostUserConfig;
pub use watchdog::{PATIENCE, Watchdog};

/// A back end that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// A message failed.
    #[error("{act}: {reason}")]
    Message {
        /// What was asked of the back end.
        act: &'static str,
        /// The protocol library's words.
        reason: String,
    },
    /// It takes too long.
    #[error(
        "the process that serves the device does not answer: {act} took longer than {patience:?}"
    )]
    Silent {
        /// What was asked of the back end.
        act: &'static str,
        /// What it was given.
        patience: Duration,
    },
    /// It lacks something that is needed.
    #[error("the back end does not offer {0}")]
    Lacks(&'static str),
    /// It serves fewer queues than the device has.
    #[error("the back end serves {offered} queues of {needed}")]
    Queues {
        /// By the back end.
        offered: u64,
        /// By the configuration.
        needed: u64,
    },
    /// The guest's memory cannot be given to another process.
    #[error("guest memory at {0:#x} is not a file's")]
    PrivateMemory(u64),
}

enum Phase {
    Idle,
    /// These queues run.
    Serving(Serving),
    Lost(String),
}

/// A device that is served by another process.
pub struct VhostUser {
    config: VhostUserConfig,
    back_end: BackEnd,
    features: u64,
    phase: Phase,
    activations: u64,
}

/// Nothing of its own: the state is in the other process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUserState {}

impl VhostUser {
    /// Begins the conversation with the back end at the other end of `connection`; no act with it takes
    /// longer than `watchdog` bears.
    ///
    /// # Errors
    /// When the back end does not answer as it should.
    pub fn new(
        config: VhostUserConfig,
        connection: UnixStream,
        watchdog: &Watchdog,
    ) -> Result<Self, VhostUserError> {
        let queues = config.queue_sizes.len() as u64;
        let (back_end, features) = BackEnd::connect(connection, queues, watchdog)?;
        Ok(Self {
            config,
            back_end,
            features,
            phase: Phase::Idle,
            activations: 0,
        })
    }

    fn start(&mut self, activation: &Activation<'_>) -> Result<(), VhostUserError> {
        self.phase = Phase::Serving(self.back_end.start(activation)?);
        self.activations += 1;
        Ok(())
    }

    /// Stops the queues; each with the next entry of its available ring.
    fn stop(&mut self) -> Result<SmallVec<[(usize, u16); 4]>, VhostUserError> {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Serving(queues) => self.back_end.stop(&queues),
            other => {
                self.phase = other;
                Ok(SmallVec::new())
            }
        }
    }

    fn lose(&mut self, reason: String) -> DeviceError {
        self.phase = Phase::Lost(reason.clone());
        DeviceError::BackEnd(reason)
    }

    fn try_start(&mut self, activation: &Activation<'_>) -> Result<(), DeviceError> {
        match &self.phase {
            Phase::Serving(_) => Ok(()),
            Phase::Lost(reason) => Err(DeviceError::BackEnd(reason.clone())),
            Phase::Idle => self
                .start(activation)
                .map_err(|error| self.lose(error.to_string())),
        }
    }
}

impl Device for VhostUser {
    type State = VhostUserState;

    fn device_type(&self) -> DeviceType {
        self.config.device_type
    }

    fn features(&self) -> u64 {
        let passed = self.config.features | feature::EVENT_IDX | feature::INDIRECT_DESC;
        self.features & passed
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        self.config.queue_sizes.clone()
    }

    fn config(&self) -> ConfigSpace {
        self.config.config.clone()
    }

    fn served_elsewhere(&self) -> bool {
        true
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), DeviceError> {
        self.try_start(activation)
    }

    /// Only the connection has events, and between messages it has none but its end.
    fn handle(&mut self, _event: Event, _rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        match self.back_end.complaint() {
            None => Ok(()),
            Some(reason) => Err(self.lose(reason)),
        }
    }

    fn reset(&mut self) {
        let Self {
            config: _,
            back_end: _,
            features: _,
            phase: _,
            activations: _,
        } = self;
        if !matches!(self.phase, Phase::Serving(_)) {
            return;
        }
        if let Err(error) = self.stop().and_then(|_| self.back_end.forget()) {
            self.phase = Phase::Lost(error.to_string());
        }
    }

    fn host_events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.back_end.events())
    }

    fn pause(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let positions = match self.stop() {
            Ok(positions) => positions,
            Err(error) => return Err(self.lose(error.to_string())),
        };
        let (memory, queues) = rings.queues();
        for (index, next_avail) in positions {
            if let Some(queue) = queues.get_mut(index) {
                let next_used = used_index(memory, queue);
                queue.set_next_avail(next_avail);
                queue.set_next_used(next_used);
            }
        }
        Ok(())
    }

    fn resume(&mut self, activation: &Activation<'_>) -> Result<(), DeviceError> {
        self.try_start(activation)
    }

    fn save(&self) -> VhostUserState {
        VhostUserState {}
    }

    fn restore(&mut self, VhostUserState {}: VhostUserState) -> Result<(), DeviceStateError> {
        Ok(())
    }

    fn counters(&self) -> isopod_virtio::DeviceCounters {
        vec![("activations", self.activations)]
    }
}

/// How far the back end got, which only the ring says.
fn used_index(memory: &GuestMemory, queue: &Queue) -> u16 {
    let at = GuestAddress(queue.used_ring().wrapping_add(2));
    let index: u16 = memory.load(at, Ordering::Acquire).unwrap_or(0);
    u16::from_le(index)
}

#[cfg(test)]
mod tests;
