//! One connection's life.
//!
//! ```text
//!   host: CONNECT                                       guest: REQUEST, host socket connected
//!        |                                                    |  (RESPONSE goes out)
//!        v                                                    v
//!   +-----------+  RESPONSE (host gets OK)               +---------+
//!   | Requested | -------------------------------------> |  Open   |
//!   +-----------+                                        +---------+
//!        | RST, timeout                                   |   |   |
//!        v                 guest: SHUTDOWN(both), all of  |   |   | both directions are over, but
//!      gone  <--- RST ---- its bytes written to the host  |   |   | not by the guest's SHUTDOWN(both)
//!                                                         |   |   v  (SHUTDOWN(both) goes out)
//!      gone  <-------------------- RST from the guest ----+   | +---------+
//!       ^                          (nothing left to write)    | | Closing | -- RST, or SHUTDOWN(both)
//!       | all written, or the host is gone                    | +---------+    from the guest, or
//!   +----------+                                              |                timeout --> gone
//!   | detached | <--- RST from the guest after it had shut ---+
//!   +----------+      down sending, bytes left to write
//! ```
//!
//! Within `Open` each direction ends on its own. Towards the guest: the host's end of stream, or the
//! guest's SHUTDOWN(RECEIVE). Towards the host: the guest's SHUTDOWN(SEND) once everything it sent
//! before has been written, or a host that does not read any more.
//!
//! A detached connection has left the table, because the guest may use its ports again; Linux sends
//! that RST on its own 8 s after a close, and a host that reads slowly must not lose bytes by it.
//!
//! No system call is made here but through [`HostStream`].

mod outbound;

use std::{
    io::{ErrorKind, IoSlice},
    net::Shutdown,
    time::{Duration, Instant},
};

use isopod_virtio::Readable;

pub use self::outbound::Packets;
use super::{
    credit::{Buffer, PeerCredit},
    packet::{Header, Op, ShutdownFlags},
    seam::{HostStream, Key, Readiness},
};

/// How long the guest may take to accept a host's connection: generous, as its CPUs may be shared by
/// many.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the guest may take to confirm that a connection is over; Firecracker's figure.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is to become of a connection after something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lives on.
    Keep,
    /// It is over; the guest is to be told.
    Reset,
    /// The guest broke the protocol; it is over and the guest is to be told.
    Fault,
    /// It is over and the guest knows.
    Drop,
    /// The guest has forgotten it; the host is yet to get the bytes that are kept.
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Requested,
    Open,
    Closing,
}

bitflags::bitflags! {
    /// Packets that are due, besides payload and SHUTDOWN, which follow from the rest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Due: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const CREDIT_REQUEST = 4;
        const CREDIT_UPDATE = 8;
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection<S> {
    key: Key,
    stream: S,
    state: State,
    peer: PeerCredit,
    buffer: Buffer,
    /// What the guest will not do any more.
    guest_over: ShutdownFlags,
    /// What the host will not do any more.
    host_over: ShutdownFlags,
    /// What the guest knows of it.
    told_over: ShutdownFlags,
    /// What the host's stream has been told of `guest_over`.
    stream_over: ShutdownFlags,
    due: Due,
    /// The stream may have bytes: it said so, and has not run dry since.
    readable: bool,
    /// The last read filled all room that it had, so the next one is worth more.
    bulk: bool,
    /// The guest was asked for credit and has not given any since.
    asked: bool,
    deadline: Option<Instant>,
    /// Tells it from other connections that had or will have its ports.
    pub serial: u64,
    /// Whether the connection is in the muxer's line.
    pub queued: bool,
    /// Whether the stream is watched for room.
    pub watched_for_room: bool,
}

impl<S: HostStream> Connection<S> {
    /// A host program wants to reach the guest's port.
    pub fn from_host(key: Key, stream: S, buf_alloc: u32, now: Instant) -> Self {
        let mut connection = Self::new(key, stream, buf_alloc, State::Requested);
        connection.due = Due::REQUEST;
        connection.deadline = Some(now + REQUEST_TIMEOUT);
        connection
    }

    /// The guest wants to reach a host's port, and `stream` does.
    pub fn from_guest(key: Key, stream: S, buf_alloc: u32, request: &Header) -> Self {
        let mut connection = Self::new(key, stream, buf_alloc, State::Open);
        connection.due = Due::RESPONSE;
        connection.peer.update(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn new(key: Key, stream: S, buf_alloc: u32, state: State) -> Self {
        Self {
            key,
            stream,
            state,
            peer: PeerCredit::default(),
            buffer: Buffer::new(buf_alloc),
            guest_over: ShutdownFlags::empty(),
            host_over: ShutdownFlags::empty(),
            told_over: ShutdownFlags::empty(),
            stream_over: ShutdownFlags::empty(),
            due: Due::empty(),
            readable: false,
            bulk: false,
            asked: false,
            deadline: None,
            serial: 0,
            queued: false,
            watched_for_room: false,
        }
    }

    /// The host's end.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// When something must have happened, or [`give_up`](Self::give_up) is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Bytes reserved for what the guest sends.
    pub fn buf_alloc(&self) -> u32 {
        self.buffer.buf_alloc()
    }

    /// Whether bytes wait for room in the host's stream.
    pub fn wants_room(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// A packet from the guest, of which `payload` holds at least `header.len` bytes.
    pub fn on_packet(
        &mut self,
        op: Op,
        header: &Header,
        payload: &mut Readable<'_>,
        now: Instant,
    ) -> Verdict {
        self.peer.update(header.buf_alloc, header.fwd_cnt);
        if self.peer.available() > 0 {
            self.asked = false;
        }
        match (self.state, op) {
            (State::Requested, Op::Rst) => return Verdict::Drop,
            (State::Requested, Op::Response) => return self.on_response(),
            (State::Requested, _) | (_, Op::Request | Op::Response) => return Verdict::Fault,
            (_, Op::Rst) => {
                let flushable = self.guest_over.contains(ShutdownFlags::SEND);
                return match flushable && self.wants_room() {
                    true => Verdict::Detach,
                    false => Verdict::Drop,
                };
            }
            (_, Op::Shutdown) => {
                self.guest_over |= ShutdownFlags::from_bits_truncate(header.flags);
            }
            (_, Op::Rw) => {
                if !self.on_payload(header.len, payload) {
                    return Verdict::Fault;
                }
            }
            (_, Op::CreditUpdate) => {}
            (_, Op::CreditRequest) => self.due |= Due::CREDIT_UPDATE,
        }
        self.settle(now)
    }

    fn on_response(&mut self) -> Verdict {
        self.state = State::Open;
        self.deadline = None;
        let answer = format!("OK {}\n", self.key.host_port);
        // The first bytes ever written to the stream: they fit, or the host program is gone.
        match self.stream.send_bytes(&[IoSlice::new(answer.as_bytes())]) {
            Ok(written) if written == answer.len() => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    /// False when the guest was not allowed to send it.
    fn on_payload(&mut self, bytes: u32, packet: &mut Readable<'_>) -> bool {
        if self.guest_over.contains(ShutdownFlags::SEND) {
            return false;
        }
        let Ok(mut payload) = packet.split_front(bytes as usize) else {
            return false;
        };
        if self.buffer.receive(bytes).is_err() {
            return false;
        }
        let nobody_reads = self.host_over.contains(ShutdownFlags::RECEIVE);
        if !nobody_reads && self.buffer.is_empty() {
            self.write_through(&mut payload);
        }
        if self.host_over.contains(ShutdownFlags::RECEIVE) {
            self.buffer.forward(payload.left());
        } else {
            self.buffer.keep(payload.slices());
        }
        self.note_room();
        true
    }

    /// Writes straight from the guest's memory as far as the host's stream takes it.
    fn write_through(&mut self, payload: &mut Readable<'_>) {
        while payload.left() > 0 {
            match self.stream.send(payload.slices()) {
                Ok(written) if written > 0 && payload.advance(written).is_ok() => {
                    self.buffer.forward(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => return self.host_reads_no_more(),
            }
        }
    }

    /// Writes what is kept as far as the host's stream takes it.
    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            match self.stream.send_bytes(&self.buffer.slices()) {
                Ok(written) if written > 0 => self.buffer.drain(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                _ => self.host_reads_no_more(),
            }
        }
        self.note_room();
    }

    fn host_reads_no_more(&mut self) {
        self.host_over |= ShutdownFlags::RECEIVE;
        self.buffer.discard();
    }

    fn note_room(&mut self) {
        if self.buffer.update_is_due() && !self.guest_over.contains(ShutdownFlags::SEND) {
            self.due |= Due::CREDIT_UPDATE;
        }
    }

    /// Something is ready on the host's stream.
    pub fn on_ready(&mut self, ready: Readiness, now: Instant) -> Verdict {
        self.readable |= ready.readable;
        if ready.hung_up && !self.stream_over.contains(ShutdownFlags::SEND) {
            self.host_reads_no_more();
        }
        if ready.writable || ready.hung_up {
            self.flush();
        }
        if ready.hung_up && self.state == State::Requested {
            // The host program went away before the guest answered.
            return self.give_up();
        }
        self.settle(now)
    }

    /// The deadline has passed, or nobody cares any more.
    pub fn give_up(&self) -> Verdict {
        match self.due.contains(Due::REQUEST) {
            // The guest never heard of it.
            true => Verdict::Drop,
            false => Verdict::Reset,
        }
    }

    /// Draws the conclusions from what is over.
    fn settle(&mut self, now: Instant) -> Verdict {
        let all_written = self.buffer.is_empty();
        if self.guest_over.contains(ShutdownFlags::SEND) && all_written {
            self.tell_stream(ShutdownFlags::SEND, Shutdown::Write);
        }
        if self.guest_over.contains(ShutdownFlags::RECEIVE) {
            self.tell_stream(ShutdownFlags::RECEIVE, Shutdown::Read);
        }
        if self.guest_over.is_all() {
            return match all_written {
                true => Verdict::Reset,
                false => Verdict::Keep,
            };
        }
        let to_guest_over = self.host_over.contains(ShutdownFlags::SEND)
            || self.guest_over.contains(ShutdownFlags::RECEIVE);
        let to_host_over = self.host_over.contains(ShutdownFlags::RECEIVE)
            || (self.guest_over.contains(ShutdownFlags::SEND) && all_written);
        if self.state == State::Open && to_guest_over && to_host_over {
            self.state = State::Closing;
            self.host_over = ShutdownFlags::all();
            self.deadline = Some(now + CLOSE_TIMEOUT);
        }
        Verdict::Keep
    }

    fn tell_stream(&mut self, what: ShutdownFlags, how: Shutdown) {
        if !self.stream_over.contains(what) {
            self.stream_over |= what;
            self.stream.shutdown(how);
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
pub(super) mod tests;
