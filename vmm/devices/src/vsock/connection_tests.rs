//! States and times that are hard to reach through sockets. The rest is tested through the device, in
//! `tests/vsock`.

use std::{cell::RefCell, collections::VecDeque, io, rc::Rc};

use isopod_memory::{AddressSpace, GuestAddress, GuestMemory, GuestSlice, anonymous};
use isopod_virtio::Writable;
use rstest::rstest;

use super::*;

/// A stream whose other end is the test.
#[derive(Clone, Debug, Default)]
pub struct FakeStream(Rc<RefCell<Far>>);

#[derive(Debug, Default)]
pub struct Far {
    /// What reads find; then they would block.
    pub to_read: VecDeque<io::Result<Vec<u8>>>,
    /// Bytes that writes took.
    pub written: Vec<u8>,
    /// Bytes that writes still take; then they would block.
    pub room: usize,
    /// What was shut down.
    pub ended: Vec<Shutdown>,
}

impl FakeStream {
    fn far(&self) -> std::cell::RefMut<'_, Far> {
        self.0.borrow_mut()
    }

    /// Puts bytes where the next read finds them.
    pub fn give(&self, bytes: &[u8]) {
        self.far().to_read.push_back(Ok(bytes.to_vec()));
    }

    fn take(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut far = self.far();
        let taken = bytes.len().min(far.room);
        if taken == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        far.room -= taken;
        far.written.extend(&bytes[..taken]);
        Ok(taken)
    }
}

impl HostStream for FakeStream {
    fn send(&self, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
        let mut bytes = Vec::new();
        for piece in pieces {
            let mut copy = vec![0; piece.len()];
            piece.copy_to(&mut copy);
            bytes.extend(copy);
        }
        self.take(&bytes)
    }

    fn send_bytes(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let slices: Vec<&[u8]> = bytes.iter().map(|slice| &**slice).collect();
        self.take(&slices.concat())
    }

    fn receive(&self, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
        let bytes = match self.far().to_read.pop_front() {
            None => return Err(ErrorKind::WouldBlock.into()),
            Some(result) => result?,
        };
        let mut rest = bytes.as_slice();
        for piece in pieces {
            let (now, later) = rest.split_at(rest.len().min(piece.len()));
            piece.copy_from(now);
            rest = later;
        }
        if !rest.is_empty() {
            self.far().to_read.push_front(Ok(rest.to_vec()));
        }
        Ok(bytes.len() - rest.len())
    }

    fn shutdown(&self, how: Shutdown) {
        self.far().ended.push(how);
    }
}

const KEY: Key = Key {
    host_port: 7,
    guest_port: 8,
};

fn with_room(room: usize) -> FakeStream {
    let stream = FakeStream::default();
    stream.far().room = room;
    stream
}

fn open(stream: &FakeStream, buf_alloc: u32) -> Connection<FakeStream> {
    let request = Header {
        buf_alloc: 1000,
        ..Header::default()
    };
    let mut connection = Connection::from_guest(KEY, stream.clone(), buf_alloc, &request);
    let memory = memory();
    let (packets, _) = connection.next_packets(&[room(&memory, 100)], Instant::now());
    assert_eq!(packets[0].op, Op::Response as u16);
    connection
}

fn memory() -> GuestMemory {
    anonymous(&[(0, 0x10000)]).unwrap()
}

fn room(memory: &GuestMemory, bytes: usize) -> Writable<'_> {
    Writable::from(memory.get_slice(GuestAddress(0), bytes).unwrap())
}

fn packet(connection: &mut Connection<FakeStream>, op: Op, flags: u32, payload: &[u8]) -> Verdict {
    let memory = memory();
    isopod_memory::Bytes::write_slice(&memory, payload, GuestAddress(0)).unwrap();
    let header = Header {
        len: payload.len() as u32,
        flags,
        buf_alloc: 1000,
        ..Header::default()
    };
    let mut payload = Readable::from(memory.get_slice(GuestAddress(0), payload.len()).unwrap());
    connection.on_packet(op, &header, &mut payload, Instant::now())
}

#[test]
fn a_request_has_its_time_and_is_only_taken_back_if_it_was_made() {
    let now = Instant::now();
    let mut connection = Connection::from_host(KEY, with_room(100), 4096, now);
    assert_eq!(connection.deadline(), Some(now + REQUEST_TIMEOUT));
    assert_eq!(connection.give_up(), Verdict::Drop, "the guest never heard");
    let memory = memory();
    let (packets, _) = connection.next_packets(&[room(&memory, 1)], now);
    assert_eq!(packets[0].op, Op::Request as u16);
    assert_eq!(connection.give_up(), Verdict::Reset);
    assert_eq!(packet(&mut connection, Op::Response, 0, b""), Verdict::Keep);
    assert_eq!(connection.deadline(), None, "an open one has no time");
}

#[test]
fn an_answer_that_does_not_fit_ends_it() {
    let mut connection = Connection::from_host(KEY, with_room(3), 4096, Instant::now());
    assert_eq!(
        packet(&mut connection, Op::Response, 0, b""),
        Verdict::Reset
    );
}

#[rstest]
#[case(Op::Request)]
#[case(Op::Shutdown)]
#[case(Op::Rw)]
#[case(Op::CreditUpdate)]
#[case(Op::CreditRequest)]
fn only_an_answer_may_follow_a_request(#[case] op: Op) {
    let mut connection = Connection::from_host(KEY, with_room(100), 4096, Instant::now());
    assert_eq!(packet(&mut connection, op, 3, b""), Verdict::Fault);
}

#[test]
fn a_partial_write_keeps_the_rest_in_order() {
    let stream = with_room(3);
    let mut connection = open(&stream, 100);
    assert_eq!(packet(&mut connection, Op::Rw, 0, b"abcdef"), Verdict::Keep);
    assert_eq!(packet(&mut connection, Op::Rw, 0, b"ghi"), Verdict::Keep);
    assert!(connection.wants_room());
    assert_eq!(packet(&mut connection, Op::Shutdown, 2, b""), Verdict::Keep);
    assert!(stream.far().ended.is_empty(), "not before the last byte");
    stream.far().room = 4;
    let writable = Readiness {
        writable: true,
        ..Readiness::default()
    };
    connection.on_ready(writable, Instant::now());
    assert_eq!(stream.far().written, b"abcdefg");
    stream.far().room = 100;
    connection.on_ready(writable, Instant::now());
    assert_eq!(stream.far().written, b"abcdefghi");
    assert_eq!(stream.far().ended, [Shutdown::Write]);
    assert!(!connection.wants_room());
}

#[test]
fn bytes_are_spread_over_the_rooms_within_credit() {
    let stream = with_room(0);
    let mut connection = open(&stream, 100);
    let memory = memory();
    stream.far().to_read.push_back(Ok(vec![1; 5000]));
    let now = Instant::now();
    connection.on_ready(
        Readiness {
            readable: true,
            ..Readiness::default()
        },
        now,
    );
    assert_eq!(connection.appetite(), 0, "nobody knows how much there is");
    let rooms = || [room(&memory, 300), room(&memory, 300), room(&memory, 600)];
    let (packets, _) = connection.next_packets(&rooms()[..1], now);
    assert_eq!(packets.iter().map(|header| header.len).sum::<u32>(), 300);
    assert_eq!(connection.appetite(), 700, "its credit");
    let (packets, _) = connection.next_packets(&rooms(), now);
    let lengths: Vec<u32> = packets.iter().map(|header| header.len).collect();
    assert_eq!(lengths, [300, 300, 100]);
    assert!(packets.iter().all(|header| header.op == Op::Rw as u16));
    let (packets, _) = connection.next_packets(&rooms(), now);
    assert_eq!(packets[0].op, Op::CreditRequest as u16);
    assert!(!connection.has_packets());
}

#[test]
fn an_error_of_the_stream_is_an_end_in_both_directions() {
    let stream = with_room(0);
    let mut connection = open(&stream, 100);
    stream
        .far()
        .to_read
        .push_back(Err(ErrorKind::ConnectionReset.into()));
    let now = Instant::now();
    let readable = Readiness {
        readable: true,
        ..Readiness::default()
    };
    assert_eq!(connection.on_ready(readable, now), Verdict::Keep);
    let memory = memory();
    let (packets, _) = connection.next_packets(&[room(&memory, 100)], now);
    assert_eq!(packets[0].op, Op::Shutdown as u16);
    assert_eq!(packets[0].flags, ShutdownFlags::all().bits());
    assert_eq!(connection.deadline(), Some(now + CLOSE_TIMEOUT));
    assert_eq!(connection.give_up(), Verdict::Reset);
}
