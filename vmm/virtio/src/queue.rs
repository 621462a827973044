//! A ring for one round of work.

use std::sync::atomic::Ordering;

use isopod_memory::{Bytes, GuestAddress, GuestMemory};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::chain::{Chain, ChainError, ChainLimits};

/// What happened on a queue since its device was made; for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// Chains that a device got.
    pub chains: u64,
    /// Chains that were refused and answered with nothing written.
    pub malformed: u64,
    /// Times that the rings themselves could not be used.
    pub broken: u64,
    /// Times that the driver was signalled.
    pub signals: u64,
}

/// The rings cannot be used until the driver sets the queue up anew.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Not set up (yet, or any more).
    #[error("the queue is not ready")]
    NotReady,
    /// A ring that is not, or not wholly, guest memory.
    #[error("the {ring} of {bytes} bytes at {address:#x} is not guest memory")]
    RingOutsideMemory {
        /// Which of the three.
        ring: &'static str,
        /// Guest-physical.
        address: u64,
        /// Its length.
        bytes: u64,
    },
    /// More chains are offered than the queue has descriptors.
    #[error("the available index is more than the queue's size ahead")]
    AvailableIndex,
    /// An access to the rings failed after they had been checked.
    #[error("access the rings: {0}")]
    Access(String),
}

/// One queue and the memory it lives in, for one round of work.
///
/// Call [`finish`](Self::finish) at the end: it tells whether the driver is to be signalled.
pub struct LiveQueue<'q, 'm> {
    queue: &'q mut Queue,
    memory: &'m GuestMemory,
    limits: ChainLimits,
    counters: &'q mut QueueCounters,
    completed: bool,
    last_refused: Option<ChainError>,
}

impl<'q, 'm> LiveQueue<'q, 'm> {
    /// Borrows a queue and checks that its three rings are guest memory.
    ///
    /// # Errors
    /// When the driver has not set it up, or set it up wrongly (counted as broken).
    pub fn new(
        queue: &'q mut Queue,
        memory: &'m GuestMemory,
        limits: ChainLimits,
        counters: &'q mut QueueCounters,
    ) -> Result<Self, QueueError> {
        if let Err(error) = check_rings(queue, memory) {
            if !matches!(error, QueueError::NotReady) {
                counters.broken += 1;
            }
            return Err(error);
        }
        Ok(Self {
            queue,
            memory,
            limits,
            counters,
            completed: false,
            last_refused: None,
        })
    }

    /// The next well-formed chain. Malformed ones are counted and answered on the way; after as many
    /// of them as the queue is long it gives up with `None`, so that a guest which keeps adding them
    /// cannot hold the caller here.
    ///
    /// # Errors
    /// When the rings are broken (counted).
    pub fn pop(&mut self) -> Result<Option<Chain<'m>>, QueueError> {
        for _ in 0..self.queue.size() {
            let Some(head) = self.next_head()? else {
                return Ok(None);
            };
            match self.parse(head) {
                Ok(chain) => return Ok(Some(chain)),
                Err(error) => {
                    self.counters.malformed += 1;
                    self.last_refused = Some(error);
                    // A head outside the table has no name by which it could be answered.
                    if head < self.queue.size() {
                        self.complete(head, 0)?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// The next chain if it is well-formed; a malformed one is left for [`pop`](Self::pop). For
    /// devices that take several chains and may [give](Self::give_back) some back, between which
    /// nothing may be answered.
    ///
    /// # Errors
    /// When the rings are broken (counted).
    pub fn pop_another(&mut self) -> Result<Option<Chain<'m>>, QueueError> {
        let Some(head) = self.next_head()? else {
            return Ok(None);
        };
        let chain = self.parse(head);
        if chain.is_err() {
            self.queue.go_to_previous_position();
        }
        Ok(chain.ok())
    }

    fn parse(&mut self, head: u16) -> Result<Chain<'m>, ChainError> {
        let table = GuestAddress(self.queue.desc_table());
        let chain = Chain::parse(self.memory, table, self.queue.size(), head, self.limits)?;
        self.counters.chains += 1;
        Ok(chain)
    }

    /// A chain that was popped in an earlier round and is not answered yet. Its descriptors may be
    /// others by now; they are checked as they were then. `None` if they cannot be used any more.
    pub fn pop_again(&mut self, head: u16) -> Option<Chain<'m>> {
        let table = GuestAddress(self.queue.desc_table());
        Chain::parse(self.memory, table, self.queue.size(), head, self.limits).ok()
    }

    fn next_head(&mut self) -> Result<Option<u16>, QueueError> {
        match self.queue.iter(self.memory) {
            Ok(mut available) => Ok(available.next().map(|chain| chain.head_index())),
            Err(error) => {
                self.counters.broken += 1;
                Err(match error {
                    virtio_queue::Error::QueueNotReady => QueueError::NotReady,
                    virtio_queue::Error::InvalidAvailRingIndex => QueueError::AvailableIndex,
                    other => QueueError::Access(other.to_string()),
                })
            }
        }
    }

    /// Gives the chain popped last back, unanswered: the next [`pop`](Self::pop) finds it again. May
    /// be called once for it, and once more for every [`pop_another`](Self::pop_another) that came
    /// before it, if no chain was completed in between.
    pub fn give_back(&mut self) {
        self.counters.chains = self.counters.chains.saturating_sub(1);
        self.queue.go_to_previous_position();
    }

    /// Answers the chain `head`, into which `written` bytes were written.
    ///
    /// # Errors
    /// When the used ring cannot be written (counted as broken).
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.queue
            .add_used(self.memory, head, written)
            .map_err(|error| {
                self.counters.broken += 1;
                QueueError::Access(error.to_string())
            })?;
        self.completed = true;
        Ok(())
    }

    /// Why the last malformed chain was refused; for a log line.
    pub fn last_refused(&self) -> Option<ChainError> {
        self.last_refused
    }

    /// Asks the driver not to notify of new chains (it may all the same).
    pub fn quiet(&mut self) {
        // Only an optimisation: a ring that cannot be written is found by the next pop.
        let _ = self.queue.disable_notification(self.memory);
    }

    /// Asks the driver to notify of new chains; true if there are some already, of which it will not.
    ///
    /// # Errors
    /// When the rings cannot be accessed.
    pub fn listen(&mut self) -> Result<bool, QueueError> {
        self.queue
            .enable_notification(self.memory)
            .map_err(|error| QueueError::Access(error.to_string()))
    }

    /// Ends the round; true if the driver wants to be signalled of what was completed.
    #[must_use = "the driver waits for the signal"]
    pub fn finish(mut self) -> bool {
        let wanted = self.completed && self.driver_wants_signal();
        if wanted {
            self.counters.signals += 1;
        }
        wanted
    }

    fn driver_wants_signal(&mut self) -> bool {
        // Spelled out because virtio-queue ignores the flag that drivers without EVENT_IDX use.
        if !self.queue.event_idx_enabled() {
            let flags = GuestAddress(self.queue.avail_ring());
            std::sync::atomic::fence(Ordering::SeqCst);
            let flags: u16 = self.memory.load(flags, Ordering::Relaxed).unwrap_or(0);
            return u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
        // In doubt signal: a spurious one costs little, a missing one everything.
        self.queue.needs_notification(self.memory).unwrap_or(true)
    }
}

/// Whether a queue is set up and its three rings are guest memory.
pub(crate) fn check_rings(queue: &Queue, memory: &GuestMemory) -> Result<(), QueueError> {
    if !queue.ready() {
        return Err(QueueError::NotReady);
    }
    let entries = u64::from(queue.size());
    // virtio 1.2, 2.7: the rings' lengths, with the event index that ends both.
    for (ring, address, bytes) in [
        ("descriptor table", queue.desc_table(), 16 * entries),
        ("available ring", queue.avail_ring(), 6 + 2 * entries),
        ("used ring", queue.used_ring(), 6 + 8 * entries),
    ] {
        if !isopod_memory::contains(memory, GuestAddress(address), bytes) {
            return Err(QueueError::RingOutsideMemory {
                ring,
                address,
                bytes,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
