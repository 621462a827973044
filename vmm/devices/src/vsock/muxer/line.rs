//! What waits for room in the guest's queue: resets first, then whose turn it is.

use std::time::Instant;

use isopod_virtio::Writable;

use super::{HOST_CID, Header, Host, Key, Muxer, Op, TYPE_STREAM};
use crate::vsock::connection::Packets;

/// Resets that wait at most, with those that no packet of the guest caused; more are forgotten, as a
/// guest that takes none will not miss them.
pub(super) const MAX_FORGETTABLE_RESETS: usize = 16 * 1024;

impl<H: Host> Muxer<H> {
    /// Whether there may be a packet for the guest.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    /// How many bytes of room the next packets could use; 0 when they are not known to need any.
    pub fn appetite(&self) -> usize {
        let first = self.line.front().filter(|_| self.resets.is_empty());
        first
            .and_then(|(key, serial)| {
                let connection = self.connections.get(key)?;
                (connection.serial == *serial).then(|| connection.appetite())
            })
            .unwrap_or(0)
    }

    /// The next packets for the guest, the n-th with its payload (if any) already in the n-th of
    /// `rooms`. Each room holds at least one byte.
    pub fn next_packets(&mut self, rooms: &[Writable<'_>], now: Instant) -> Packets {
        let packets = match self.resets.pop_front() {
            Some(reset) => Packets::from_iter([reset]),
            None => self.next_of_line(rooms, now),
        };
        self.counters.packets_to_guest += packets.len() as u64;
        let bytes: u64 = packets.iter().map(|header| u64::from(header.len)).sum();
        self.counters.bytes_to_guest += bytes;
        packets
    }

    fn next_of_line(&mut self, rooms: &[Writable<'_>], now: Instant) -> Packets {
        // Those who have nothing after all may queue up again at once, but are not asked twice.
        for _ in 0..self.line.len() {
            let Some((key, serial)) = self.line.pop_front() else {
                break;
            };
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            if connection.serial != serial {
                continue;
            }
            connection.queued = false;
            let before = connection.deadline();
            let (mut packets, verdict) = connection.next_packets(rooms, now);
            self.note_deadline(key, before);
            self.conclude(key, verdict);
            if !packets.is_empty() {
                for header in &mut packets {
                    header.src_cid = HOST_CID;
                    header.dst_cid = self.guest_cid;
                    header.kind = TYPE_STREAM;
                }
                return packets;
            }
        }
        Packets::new()
    }

    pub(super) fn refuse(&mut self, key: Key) {
        self.counters.refused += 1;
        self.reset(key);
    }

    pub(super) fn reset(&mut self, key: Key) {
        self.push_reset(Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            kind: TYPE_STREAM,
            op: Op::Rst as u16,
            ..Header::default()
        });
    }

    pub(super) fn push_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_FORGETTABLE_RESETS {
            self.resets.push_back(reset);
        }
    }
}
