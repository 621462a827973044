//! A device's rings, lent to it for one round of work.

use isopod_memory::GuestMemory;
use virtio_queue::{Queue, QueueT};

use crate::{
    Chain, ChainLimits, ConfigSpace, LiveQueue, QueueCounters, QueueError,
    device::DeviceError,
    feature,
    shared::{INTERRUPT_USED, Shared},
};

/// Chains of one queue that one round answers at most, so that a driver which never stops cannot
/// keep its device from hearing a reset. What is left is the next round's.
pub const CHAINS_PER_ROUND: usize = 256;

/// The rings of an active device. Lent by the transport; ends with the round.
pub struct Rings<'r> {
    pub(crate) memory: &'r GuestMemory,
    pub(crate) queues: &'r mut [Queue],
    pub(crate) counters: &'r mut [QueueCounters],
    pub(crate) features: u64,
    pub(crate) shared: &'r Shared,
}

/// What the driver sees of the configuration space.
#[derive(Clone, Copy)]
pub struct ConfigView<'r>(&'r Shared);

impl ConfigView<'_> {
    /// Shows another configuration space, without an interrupt: for what a request changes, before
    /// the request is answered.
    pub fn show(&self, config: ConfigSpace) {
        self.0.show_config(config);
    }
}

impl<'r> Rings<'r> {
    /// See [`ConfigView`].
    pub fn config_view(&self) -> ConfigView<'r> {
        ConfigView(self.shared)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        self.memory
    }

    /// Both sides' features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether a feature bit (a mask) was negotiated.
    pub fn negotiated(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Whether the driver has set this queue up.
    pub fn ready(&self, index: usize) -> bool {
        self.queues.get(index).is_some_and(Queue::ready)
    }

    /// All rings as the transport holds them, for a device that works on several at once; it tells
    /// what it completed by [`signal`](Self::signal).
    pub fn queues(&mut self) -> (&GuestMemory, &mut [Queue]) {
        (self.memory, self.queues)
    }

    /// Raises the interrupt for used buffers.
    pub fn signal(&self) {
        self.shared.interrupt.raise(INTERRUPT_USED);
    }

    /// Has the queue's [`Event::Queue`](crate::Event::Queue) come again, after other events.
    pub fn again(&self, index: usize) {
        if let Some(doorbell) = self.shared.doorbells.get(index) {
            // A full eventfd rings already.
            let _ = doorbell.write(1);
        }
    }

    /// Works on one queue and signals the driver if it wants that; `None` if the driver has not set
    /// the queue up. The chains' `indirect` limit is what was negotiated.
    ///
    /// # Errors
    /// When the rings are broken: the device is to pass that on.
    pub fn with<T>(
        &mut self,
        index: usize,
        limits: ChainLimits,
        work: impl FnOnce(&mut LiveQueue<'_, '_>) -> Result<T, QueueError>,
    ) -> Result<Option<T>, DeviceError> {
        let broken = |source| DeviceError::Queue { index, source };
        let limits = ChainLimits {
            indirect: self.negotiated(feature::INDIRECT_DESC),
            ..limits
        };
        let (Some(queue), Some(counters)) =
            (self.queues.get_mut(index), self.counters.get_mut(index))
        else {
            return Ok(None);
        };
        let mut live = match LiveQueue::new(queue, self.memory, limits, counters) {
            Ok(live) => live,
            Err(QueueError::NotReady) => return Ok(None),
            Err(error) => return Err(broken(error)),
        };
        let result = work(&mut live);
        if live.finish() {
            self.signal();
        }
        result.map(Some).map_err(broken)
    }

    /// Answers the chains of one queue, as many as are there and one round allows. `answer` returns
    /// the bytes that it wrote.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn answer_each(
        &mut self,
        index: usize,
        limits: ChainLimits,
        mut answer: impl FnMut(Chain<'_>) -> u32,
    ) -> Result<(), DeviceError> {
        let left = self.with(index, limits, |live| {
            live.quiet();
            for _ in 0..CHAINS_PER_ROUND {
                match live.pop()? {
                    Some(chain) => {
                        let head = chain.head;
                        let written = answer(chain);
                        live.complete(head, written)?;
                    }
                    None if live.listen()? => live.quiet(),
                    None => return Ok(false),
                }
            }
            Ok(true)
        })?;
        if left == Some(true) {
            self.again(index);
        }
        Ok(())
    }
}
