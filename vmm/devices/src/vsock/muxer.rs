//! The table of connections: whose packet it is, and whose turn it is to send one.
//!
//! Makes no system call but through [`Host`] and its streams.

mod line;
mod time;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Instant,
};

use isopod_virtio::Readable;
use serde::{Deserialize, Serialize};

use super::{
    connection::{Connection, Verdict},
    credit::Budget,
    packet::{HOST_CID, Header, Op, TYPE_STREAM},
    seam::{ConnectError, FIRST_RESERVED_PORT, Host, Key, Readiness, Token},
    waiting::WaitingRequests,
};

/// Answers to packets that belong to no connection, waiting for room in the rx queue. When so many
/// wait, nothing more is taken from the guest until it takes some.
const MAX_RESETS: usize = 256;

/// Ports that the host's ends of its own connections get, as in Firecracker.
const FIRST_LOCAL_PORT: u32 = 1 << 30;
const LAST_LOCAL_PORT: u32 = (1 << 31) - 1;

/// What happened since the device was made; for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockCounters {
    /// Packets from the guest.
    pub packets_from_guest: u64,
    /// Packets to the guest.
    pub packets_to_guest: u64,
    /// Payload from the guest.
    pub bytes_from_guest: u64,
    /// Payload to the guest.
    pub bytes_to_guest: u64,
    /// Connections that the guest asked for and got.
    pub opened_by_guest: u64,
    /// Connections that host programs asked the guest for.
    pub opened_by_host: u64,
    /// Connections of either kind that were refused for lack of a listener, memory or descriptors.
    pub refused: u64,
    /// Packets with which the guest broke the protocol.
    pub guest_errors: u64,
}

/// The table.
#[derive(Debug)]
pub struct Muxer<H: Host> {
    guest_cid: u64,
    host: H,
    connections: HashMap<Key, Connection<H::Stream>>,
    detached: HashMap<u32, Connection<H::Stream>>,
    next_detached: u32,
    /// Connections that have packets, each once, the one whose turn it is first. Entries are stale
    /// when the serial number is not that of the connection.
    line: VecDeque<(Key, u64)>,
    next_serial: u64,
    resets: VecDeque<Header>,
    waiting: WaitingRequests,
    deadlines: BTreeSet<(Instant, Key)>,
    budget: Budget,
    next_local_port: u32,
    counters: VsockCounters,
}

impl<H: Host> Muxer<H> {
    /// An empty table.
    pub fn new(guest_cid: u32, host: H) -> Self {
        Self {
            guest_cid: u64::from(guest_cid),
            host,
            connections: HashMap::new(),
            detached: HashMap::new(),
            next_detached: 0,
            line: VecDeque::new(),
            next_serial: 0,
            resets: VecDeque::new(),
            waiting: WaitingRequests::default(),
            deadlines: BTreeSet::new(),
            budget: Budget::new(),
            next_local_port: FIRST_LOCAL_PORT,
            counters: VsockCounters::default(),
        }
    }

    /// The host.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// The host, to change it.
    pub fn host_mut(&mut self) -> &mut H {
        &mut self.host
    }

    /// What happened so far.
    pub fn counters(&self) -> VsockCounters {
        self.counters
    }

    /// Live connections, those included that wait to be opened or flushed.
    pub fn connections(&self) -> usize {
        self.connections.len() + self.detached.len() + self.waiting.len()
    }

    /// The port that the next connection of a host program gets (if it is free).
    pub fn next_local_port(&self) -> u32 {
        self.next_local_port
    }

    /// Continues the numbering of a saved device.
    pub fn set_next_local_port(&mut self, port: u32) {
        self.next_local_port = port.clamp(FIRST_LOCAL_PORT, LAST_LOCAL_PORT);
    }

    /// Closes everything without a word to the guest. Counters and port numbers go on.
    pub fn clear(&mut self) {
        self.connections = HashMap::new();
        self.detached = HashMap::new();
        self.line = VecDeque::new();
        self.resets = VecDeque::new();
        self.waiting = WaitingRequests::default();
        self.deadlines = BTreeSet::new();
        self.budget = Budget::new();
    }

    /// Whether another packet may be taken from the guest.
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// The guest sent something that is no packet.
    pub fn count_guest_error(&mut self) {
        self.counters.guest_errors += 1;
    }

    /// A packet from the guest.
    pub fn on_packet(&mut self, header: &Header, payload: &mut Readable<'_>, now: Instant) {
        self.counters.packets_from_guest += 1;
        if header.src_cid != self.guest_cid {
            self.counters.guest_errors += 1;
            return;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let op = Op::from_wire(header.op);
        let (Some(op), HOST_CID, TYPE_STREAM) = (op, header.dst_cid, header.kind) else {
            // Addressed to nobody here, or not understood.
            self.counters.guest_errors += 1;
            if op != Some(Op::Rst) {
                if header.dst_cid == HOST_CID && header.kind == TYPE_STREAM {
                    self.remove(key);
                }
                self.push_reset(header.reset_reply());
            }
            return;
        };
        if header.len as usize > payload.left() {
            return self.conclude(key, Verdict::Fault);
        }
        if op == Op::Rw {
            self.counters.bytes_from_guest += u64::from(header.len);
        }
        if let Some(connection) = self.connections.get_mut(&key) {
            let before = connection.deadline();
            let verdict = connection.on_packet(op, header, payload, now);
            self.note_deadline(key, before);
            return self.conclude(key, verdict);
        }
        if self.waiting.remove(key) {
            // The guest gave up, or is confused.
            if op != Op::Rst {
                self.reset(key);
            }
            return;
        }
        match op {
            Op::Request => self.on_request(key, header, now),
            Op::Rst => {}
            _ => self.reset(key),
        }
    }

    fn on_request(&mut self, key: Key, request: &Header, now: Instant) {
        // Behind those who wait already: first come, first served.
        let opened = self.waiting.is_empty() && self.try_connect(key, request);
        if !opened && !self.waiting.push(key, request, now) {
            self.refuse(key);
        }
    }

    /// Opens a connection for the guest or refuses it; false when the host program is busy.
    fn try_connect(&mut self, key: Key, request: &Header) -> bool {
        if key.host_port >= FIRST_RESERVED_PORT || self.budget.is_spent() {
            self.refuse(key);
            return true;
        }
        match self.host.connect(key.host_port) {
            Ok(stream) => {
                let opened = self.open(key, stream, |key, stream, buf_alloc| {
                    Connection::from_guest(key, stream, buf_alloc, request)
                });
                match opened {
                    true => self.counters.opened_by_guest += 1,
                    false => self.refuse(key),
                }
                true
            }
            Err(ConnectError::Refused) => {
                self.refuse(key);
                true
            }
            Err(ConnectError::Busy) => false,
        }
    }

    /// A host program asked for the guest's port; its stream is closed if that cannot be.
    pub fn on_host_connect(&mut self, stream: H::Stream, guest_port: u32, now: Instant) {
        let key = self.local_key(guest_port);
        let opened = self.open(key, stream, |key, stream, buf_alloc| {
            Connection::from_host(key, stream, buf_alloc, now)
        });
        match opened {
            true => self.counters.opened_by_host += 1,
            false => self.counters.refused += 1,
        }
    }

    /// The next free local port for a connection to `guest_port`. There are far more ports than
    /// connections.
    fn local_key(&mut self, guest_port: u32) -> Key {
        loop {
            let key = Key {
                host_port: self.next_local_port,
                guest_port,
            };
            self.next_local_port = match self.next_local_port {
                LAST_LOCAL_PORT => FIRST_LOCAL_PORT,
                port => port + 1,
            };
            let taken = self.connections.contains_key(&key) || self.waiting.contains(key);
            if !taken {
                return key;
            }
        }
    }

    fn open(
        &mut self,
        key: Key,
        stream: H::Stream,
        make: impl FnOnce(Key, H::Stream, u32) -> Connection<H::Stream>,
    ) -> bool {
        if self
            .host
            .watch(Token::Connection(key), &stream, false)
            .is_err()
        {
            return false;
        }
        let Some(buf_alloc) = self.budget.reserve() else {
            return false;
        };
        let mut connection = make(key, stream, buf_alloc);
        connection.serial = self.next_serial;
        self.next_serial += 1;
        if let Some(deadline) = connection.deadline() {
            self.deadlines.insert((deadline, key));
        }
        self.connections.insert(key, connection);
        self.conclude(key, Verdict::Keep);
        true
    }

    /// Something is ready on a host's stream.
    pub fn on_ready(&mut self, token: Token, ready: Readiness, now: Instant) {
        match token {
            Token::Connection(key) => {
                if let Some(connection) = self.connections.get_mut(&key) {
                    let before = connection.deadline();
                    let verdict = connection.on_ready(ready, now);
                    self.note_deadline(key, before);
                    self.conclude(key, verdict);
                }
            }
            Token::Detached(id) => {
                if let Some(connection) = self.detached.get_mut(&id) {
                    connection.on_ready(ready, now);
                    if !connection.wants_room() {
                        self.budget.release(connection.buf_alloc());
                        self.detached.remove(&id);
                    }
                }
            }
        }
    }

    /// Does to a connection what its state calls for.
    fn conclude(&mut self, key: Key, verdict: Verdict) {
        match verdict {
            Verdict::Keep => self.keep(key),
            Verdict::Drop => {
                self.remove(key);
            }
            Verdict::Reset => {
                self.remove(key);
                self.reset(key);
            }
            Verdict::Fault => {
                self.counters.guest_errors += 1;
                self.remove(key);
                self.reset(key);
            }
            Verdict::Detach => self.detach(key),
        }
    }

    /// Queues it if it has packets, and watches its stream for what it needs.
    fn keep(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if !connection.queued && connection.has_packets() {
            connection.queued = true;
            self.line.push_back((key, connection.serial));
        }
        let room = connection.wants_room();
        if room != connection.watched_for_room {
            connection.watched_for_room = room;
            let token = Token::Connection(key);
            if self.host.rewatch(token, connection.stream(), room).is_err() {
                self.conclude(key, Verdict::Reset);
            }
        }
    }

    fn detach(&mut self, key: Key) {
        let Some(connection) = self.take(key) else {
            return;
        };
        let id = self.next_detached;
        self.next_detached = self.next_detached.wrapping_add(1);
        let token = Token::Detached(id);
        let watched = self.host.rewatch(token, connection.stream(), true).is_ok();
        if watched && !self.detached.contains_key(&id) {
            self.detached.insert(id, connection);
        } else {
            self.budget.release(connection.buf_alloc());
        }
    }

    fn remove(&mut self, key: Key) {
        if let Some(connection) = self.take(key) {
            self.budget.release(connection.buf_alloc());
        }
    }

    fn take(&mut self, key: Key) -> Option<Connection<H::Stream>> {
        let connection = self.connections.remove(&key)?;
        if let Some(deadline) = connection.deadline() {
            self.deadlines.remove(&(deadline, key));
        }
        // The line must not grow by connections that come and go while the guest takes no packets.
        if self.line.len() > 2 * self.connections.len() + MAX_RESETS {
            let connections = &self.connections;
            self.line.retain(|(key, serial)| {
                connections
                    .get(key)
                    .is_some_and(|connection| connection.serial == *serial)
            });
        }
        Some(connection)
    }
}

#[cfg(test)]
#[path = "muxer_tests.rs"]
mod tests;
