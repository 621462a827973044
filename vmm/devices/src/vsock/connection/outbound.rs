//! Packets of a connection for the guest.

use std::{io::ErrorKind, time::Instant};

use isopod_memory::{GuestSlice, socket};
use isopod_virtio::Writable;
use smallvec::SmallVec;

use super::{Connection, Due, State, Verdict};
use crate::vsock::{
    packet::{Header, MAX_PAYLOAD, Op, ShutdownFlags},
    seam::HostStream,
};

/// Payload that one turn of a connection moves to the guest at most, for fairness.
const TURN: usize = MAX_PAYLOAD as usize;

/// Packets for the guest, the n-th with its payload (if any) in the n-th room.
pub type Packets = SmallVec<[Header; 4]>;

impl<S: HostStream> Connection<S> {
    fn may_read(&self) -> bool {
        self.state == State::Open
            && self.readable
            && !self.host_over.contains(ShutdownFlags::SEND)
            && !self.guest_over.contains(ShutdownFlags::RECEIVE)
    }

    /// Whether [`next_packet`](Self::next_packet) may have something.
    pub fn has_packets(&self) -> bool {
        !self.due.is_empty()
            || (self.may_read() && (self.peer.available() > 0 || !self.asked))
            || (self.state != State::Requested && self.told_over != self.host_over)
    }

    /// How many bytes of room its next turn could use; 0 when it is not known to need any.
    pub fn appetite(&self) -> usize {
        match self.bulk && self.may_read() && self.due.is_empty() {
            true => TURN.min(self.peer.available() as usize),
            false => 0,
        }
    }

    /// The next packets for the guest; what is due to become of the connection after them.
    pub fn next_packets(&mut self, rooms: &[Writable<'_>], now: Instant) -> (Packets, Verdict) {
        for (due, op) in [(Due::REQUEST, Op::Request), (Due::RESPONSE, Op::Response)] {
            if self.due.contains(due) {
                self.due.remove(due);
                return (Packets::from_iter([self.header(op)]), Verdict::Keep);
            }
        }
        let mut verdict = Verdict::Keep;
        if self.may_read() {
            if self.peer.available() > 0 {
                let packets = self.read(rooms);
                if !packets.is_empty() {
                    return (packets, Verdict::Keep);
                }
                verdict = self.settle(now);
            } else if !self.asked {
                self.asked = true;
                self.due |= Due::CREDIT_REQUEST;
            }
        }
        (self.next_control_packet().into_iter().collect(), verdict)
    }

    fn next_control_packet(&mut self) -> Option<Header> {
        if self.told_over != self.host_over {
            self.told_over = self.host_over;
            let flags = self.told_over.bits();
            return Some(Header {
                flags,
                ..self.header(Op::Shutdown)
            });
        }
        for (due, op) in [
            (Due::CREDIT_REQUEST, Op::CreditRequest),
            (Due::CREDIT_UPDATE, Op::CreditUpdate),
        ] {
            if self.due.contains(due) {
                self.due.remove(due);
                return Some(self.header(op));
            }
        }
        None
    }

    /// Bytes read from the host's stream into `rooms`, within the guest's credit; no packets when
    /// there are no bytes now, or never again.
    fn read(&mut self, rooms: &[Writable<'_>]) -> Packets {
        let credit = self.peer.available() as usize;
        let (pieces, room) = front(rooms, credit.min(TURN));
        if room == 0 {
            return Packets::new();
        }
        let read = match self.stream.receive(&pieces) {
            Ok(0) => {
                self.host_over |= ShutdownFlags::SEND;
                0
            }
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                0
            }
            // The host program closed without having read everything, so it will not.
            Err(_) => {
                self.host_over |= ShutdownFlags::SEND;
                self.host_reads_no_more();
                0
            }
        };
        self.bulk = read == room;
        self.packets_of(read, rooms)
    }

    /// Headers for `read` bytes that are in `rooms`.
    fn packets_of(&mut self, read: usize, rooms: &[Writable<'_>]) -> Packets {
        let mut left = read;
        let mut packets = Packets::new();
        for room in rooms {
            if left == 0 {
                break;
            }
            let bytes = left.min(room.left());
            left -= bytes;
            // One turn's bytes fit 32 bits.
            let len = bytes as u32;
            self.peer.consume(len);
            packets.push(Header {
                len,
                ..self.header(Op::Rw)
            });
        }
        packets
    }

    /// A header from the host's end with what every packet carries. It tells the guest of all room.
    fn header(&mut self, op: Op) -> Header {
        if op != Op::CreditRequest {
            self.due.remove(Due::CREDIT_UPDATE);
        }
        Header {
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            op: op as u16,
            buf_alloc: self.buffer.buf_alloc(),
            fwd_cnt: self.buffer.tell_forwarded(),
            ..Header::default()
        }
    }
}

/// The first `limit` bytes of `rooms`, and how many they are.
fn front<'m>(rooms: &[Writable<'m>], limit: usize) -> (SmallVec<[GuestSlice<'m>; 16]>, usize) {
    let mut left = limit;
    let mut front = SmallVec::new();
    let pieces = rooms.iter().flat_map(|room| room.slices());
    for piece in pieces.take(socket::MAX_PIECES) {
        let bytes = piece.len().min(left);
        if bytes == 0 {
            break;
        }
        if let Ok(part) = piece.subslice(0, bytes) {
            left -= bytes;
            front.push(part);
        }
    }
    (front, limit - left)
}
