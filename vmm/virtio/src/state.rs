//! A queue as data that can be saved.

use serde::{Deserialize, Serialize};
use virtio_queue::Queue;

/// Everything about a ring that is not in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Descriptors that the device offers at most.
    pub max_size: u16,
    /// Descriptors that the driver chose.
    pub size: u16,
    /// Whether the driver has set it up.
    pub ready: bool,
    /// The next entry of the available ring to look at (runs over 16 bits).
    pub next_avail: u16,
    /// The next entry of the used ring to write (runs over 16 bits).
    pub next_used: u16,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Guest-physical address.
    pub desc_table: u64,
    /// Guest-physical address.
    pub avail_ring: u64,
    /// Guest-physical address.
    pub used_ring: u64,
}

/// A saved queue that no driver could have set up.
#[derive(Debug, thiserror::Error)]
#[error("restore a queue: {0}")]
pub struct QueueStateError(String);

impl From<&Queue> for QueueState {
    fn from(queue: &Queue) -> Self {
        let virtio_queue::QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = queue.state();
        Self {
            max_size,
            size,
            ready,
            next_avail,
            next_used,
            event_idx: event_idx_enabled,
            desc_table,
            avail_ring,
            used_ring,
        }
    }
}

impl TryFrom<QueueState> for Queue {
    type Error = QueueStateError;

    fn try_from(state: QueueState) -> Result<Self, QueueStateError> {
        let QueueState {
            max_size,
            size,
            ready,
            next_avail,
            next_used,
            event_idx,
            desc_table,
            avail_ring,
            used_ring,
        } = state;
        Queue::try_from(virtio_queue::QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled: event_idx,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        })
        .map_err(|error| QueueStateError(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::QueueT;

    use super::*;

    #[test]
    fn a_queue_survives_being_saved() {
        let mut queue = Queue::new(256).unwrap();
        queue.set_size(64);
        queue.set_desc_table_address(Some(0x1000), Some(1));
        queue.set_avail_ring_address(Some(0x2000), None);
        queue.set_used_ring_address(Some(0x3000), None);
        queue.set_event_idx(true);
        queue.set_next_avail(65_535);
        queue.set_next_used(7);
        queue.set_ready(true);

        let json = serde_json::to_string(&QueueState::from(&queue)).unwrap();
        let state: QueueState = serde_json::from_str(&json).unwrap();
        assert_eq!(Queue::try_from(state).unwrap(), queue);
    }

    #[test]
    fn a_state_that_no_driver_could_set_up_is_refused() {
        let good = QueueState::from(&Queue::new(16).unwrap());
        for bad in [
            QueueState { size: 15, ..good },
            QueueState { size: 32, ..good },
            QueueState {
                desc_table: 8,
                ..good
            },
        ] {
            assert!(Queue::try_from(bad).is_err(), "{bad:?}");
        }
    }
}
