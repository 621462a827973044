//! Packets between the driver's queues and the table of connections.

use std::time::Instant;

use isopod_virtio::{Chain, ChainLimits, LiveQueue, QueueError, Writable};
use smallvec::SmallVec;

use super::VsockDevice;
use crate::vsock::packet::{HEADER_LEN, Header, MAX_PAYLOAD};

/// Rounds of "from the guest, to the guest" in one call, each of a queue's length at most.
const ROUNDS: usize = 4;

pub(super) const TX_LIMITS: ChainLimits = ChainLimits {
    max_readable: HEADER_LEN as u32 + MAX_PAYLOAD,
    max_writable: 0,
    indirect: false,
};

/// Any room is fine: only [`MAX_PAYLOAD`] of it is used.
pub(super) const RX_LIMITS: ChainLimits = ChainLimits {
    max_readable: 0,
    max_writable: u32::MAX,
    indirect: false,
};

/// Buffers of the driver that one turn of a connection fills at most.
const MAX_ROOMS: usize = 32;

/// A chain's name and the room for its header.
type Head<'m> = (u16, Writable<'m>);
type Heads<'m> = SmallVec<[Head<'m>; 4]>;
/// Room for payloads.
type Rooms<'m> = SmallVec<[Writable<'m>; 4]>;
type Room<'m> = (Head<'m>, Writable<'m>);

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, little-endian (virtio 1.2, 5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

impl VsockDevice {
    /// Packets from the guest and to the guest until neither is left; true if some may be.
    pub(super) fn exchange(
        &mut self,
        rx: &mut LiveQueue<'_, '_>,
        tx: &mut LiveQueue<'_, '_>,
        now: Instant,
    ) -> Result<bool, QueueError> {
        tx.quiet();
        rx.quiet();
        for _ in 0..ROUNDS {
            let took_all = self.take_packets(tx, now)?;
            let gave_all = self.give_packets(rx, now)?;
            // The driver need only notify of what is waited for, and may have been too early.
            let more_tx = took_all && tx.listen()?;
            let more_rx = !gave_all && rx.listen()?;
            let blocked_tx = !took_all && self.muxer.takes_packets();
            if !more_tx && !more_rx && !blocked_tx {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// True when the queue is empty; false when packets are left in it, because a queue's length has
    /// been taken or because answers must leave first.
    fn take_packets(
        &mut self,
        tx: &mut LiveQueue<'_, '_>,
        now: Instant,
    ) -> Result<bool, QueueError> {
        for _ in 0..Self::MAX_QUEUE_SIZE {
            if !self.muxer.takes_packets() {
                return Ok(false);
            }
            let Some(mut chain) = tx.pop()? else {
                return Ok(true);
            };
            match Header::read(&mut chain.readable) {
                Ok(header) => self.muxer.on_packet(&header, &mut chain.readable, now),
                Err(_) => self.muxer.count_guest_error(),
            }
            tx.complete(chain.head, 0)?;
        }
        Ok(false)
    }

    /// True when there is nothing more for the guest; false when there is and it has no room.
    fn give_packets(
        &mut self,
        rx: &mut LiveQueue<'_, '_>,
        now: Instant,
    ) -> Result<bool, QueueError> {
        while self.muxer.has_packets() {
            let Some((head, payload)) = self.first_room(rx)? else {
                return Ok(false);
            };
            let mut room = payload.left();
            let mut heads = Heads::from_iter([head]);
            let mut rooms = Rooms::from_iter([payload]);
            // A stream that moves in bulk is read into many of the driver's small buffers at once.
            while room < self.muxer.appetite() && rooms.len() < MAX_ROOMS {
                let Some(chain) = rx.pop_another()? else {
                    break;
                };
                let Some((head, payload)) = room_of(chain) else {
                    rx.give_back();
                    break;
                };
                room += payload.left();
                heads.push(head);
                rooms.push(payload);
            }
            let packets = self.muxer.next_packets(&rooms, now);
            for _ in packets.len()..rooms.len() {
                rx.give_back();
            }
            for (header, (head, mut room)) in packets.iter().zip(heads) {
                // The room was split off at just this length.
                let _ = room.write(&header.to_wire());
                rx.complete(head, HEADER_LEN as u32 + header.len)?;
            }
            if packets.is_empty() {
                return Ok(!self.muxer.has_packets());
            }
        }
        Ok(true)
    }

    fn first_room<'m>(
        &mut self,
        rx: &mut LiveQueue<'_, 'm>,
    ) -> Result<Option<Room<'m>>, QueueError> {
        while let Some(chain) = rx.pop()? {
            let head = chain.head;
            if let Some(room) = room_of(chain) {
                return Ok(Some(room));
            }
            self.muxer.count_guest_error();
            rx.complete(head, 0)?;
        }
        Ok(None)
    }
}

/// The driver's buffer as room for a header and for at least a byte of payload, without which streams
/// could never move.
fn room_of(chain: Chain<'_>) -> Option<Room<'_>> {
    let Chain {
        head, mut writable, ..
    } = chain;
    if writable.left() <= HEADER_LEN {
        return None;
    }
    let header = writable.split_front(HEADER_LEN).ok()?;
    Some(((head, header), writable))
}

/// Whether the event could be delivered.
pub(super) fn tell_reset(event: &mut LiveQueue<'_, '_>) -> bool {
    let Ok(Some(Chain {
        head, mut writable, ..
    })) = event.pop()
    else {
        return false;
    };
    let written = match writable.write(&TRANSPORT_RESET) {
        Ok(()) => TRANSPORT_RESET.len() as u32,
        Err(_) => 0,
    };
    event.complete(head, written).is_ok() && written > 0
}
