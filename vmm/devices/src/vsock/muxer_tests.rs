//! The table, with a clock and a host of the test's own.

use std::{io, time::Duration};

use isopod_memory::{AddressSpace, GuestAddress, GuestMemory, anonymous};
use isopod_virtio::Writable;

use super::{line::MAX_FORGETTABLE_RESETS, *};
use crate::vsock::{
    connection::{CLOSE_TIMEOUT, REQUEST_TIMEOUT, tests::FakeStream},
    waiting::{CONNECT_TIMEOUT, MAX_WAITING, RETRY},
};

const GUEST_CID: u32 = 5;

/// A host on which every port is served, but may be busy.
#[derive(Debug, Default)]
struct FakeHost {
    busy: bool,
    connected: usize,
}

impl Host for FakeHost {
    type Stream = FakeStream;

    fn connect(&mut self, _port: u32) -> Result<FakeStream, ConnectError> {
        if self.busy {
            return Err(ConnectError::Busy);
        }
        self.connected += 1;
        Ok(FakeStream::default())
    }

    fn watch(&mut self, _: Token, _: &FakeStream, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn rewatch(&mut self, _: Token, _: &FakeStream, _: bool) -> io::Result<()> {
        Ok(())
    }
}

struct Rig {
    muxer: Muxer<FakeHost>,
    memory: GuestMemory,
    now: Instant,
}

fn rig() -> Rig {
    Rig {
        muxer: Muxer::new(GUEST_CID, FakeHost::default()),
        memory: anonymous(&[(0, 0x10000)]).unwrap(),
        now: Instant::now(),
    }
}

impl Rig {
    fn send(&mut self, op: Op, host_port: u32, guest_port: u32) {
        let header = Header {
            src_cid: GUEST_CID.into(),
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc: 1000,
            ..Header::default()
        };
        self.muxer
            .on_packet(&header, &mut Readable::default(), self.now);
    }

    /// `(operation, host port, guest port)` of every packet that waits.
    fn packets(&mut self) -> Vec<(Op, u32, u32)> {
        let mut all = Vec::new();
        while self.muxer.has_packets() {
            let room = self.memory.get_slice(GuestAddress(0), 4096).unwrap();
            let packets = self.muxer.next_packets(&[Writable::from(room)], self.now);
            if packets.is_empty() {
                break;
            }
            all.extend(packets.iter().map(|header| {
                let op = Op::from_wire(header.op).unwrap();
                (op, header.src_port, header.dst_port)
            }));
        }
        all
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.muxer.on_time(self.now);
    }
}

#[test]
fn an_unanswered_request_is_taken_back_in_time() {
    let mut rig = rig();
    rig.muxer
        .on_host_connect(FakeStream::default(), 1024, rig.now);
    assert_eq!(rig.packets(), [(Op::Request, FIRST_LOCAL_PORT, 1024)]);
    assert_eq!(rig.muxer.next_time(), Some(rig.now + REQUEST_TIMEOUT));
    rig.pass(REQUEST_TIMEOUT - Duration::from_millis(1));
    assert_eq!(rig.packets(), []);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.packets(), [(Op::Rst, FIRST_LOCAL_PORT, 1024)]);
    assert_eq!(rig.muxer.connections(), 0);
    assert_eq!(rig.muxer.next_time(), None);
}

#[test]
fn an_unconfirmed_end_is_forced_in_time() {
    let mut rig = rig();
    rig.send(Op::Request, 1, 2);
    assert_eq!(rig.packets(), [(Op::Response, 1, 2)]);
    assert_eq!(rig.muxer.next_time(), None, "an open connection may idle");
    let key = Key {
        host_port: 1,
        guest_port: 2,
    };
    rig.muxer.connections[&key].stream().give(&[]);
    let gone = Readiness {
        readable: true,
        writable: false,
        hung_up: true,
    };
    rig.muxer.on_ready(Token::Connection(key), gone, rig.now);
    let packets = rig.packets();
    assert!(packets.iter().all(|packet| *packet == (Op::Shutdown, 1, 2)));
    assert_eq!(rig.muxer.next_time(), Some(rig.now + CLOSE_TIMEOUT));
    rig.pass(CLOSE_TIMEOUT - Duration::from_millis(1));
    assert_eq!(rig.packets(), []);
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.packets(), [(Op::Rst, 1, 2)]);
    assert_eq!(rig.muxer.connections(), 0);
    assert_eq!(rig.muxer.next_time(), None);
}

#[test]
fn the_guest_s_connections_wait_for_a_busy_program_and_then_give_up() {
    let mut rig = rig();
    rig.muxer.host_mut().busy = true;
    for port in 0..MAX_WAITING as u32 + 1 {
        rig.send(Op::Request, 1, port);
    }
    assert_eq!(
        rig.packets(),
        [(Op::Rst, 1, MAX_WAITING as u32)],
        "one too many"
    );
    assert_eq!(rig.muxer.next_time(), Some(rig.now + RETRY));
    rig.pass(RETRY);
    assert_eq!(rig.packets(), []);
    rig.muxer.host_mut().busy = false;
    rig.pass(RETRY);
    assert_eq!(rig.packets().len(), MAX_WAITING);
    assert_eq!(rig.muxer.host().connected, MAX_WAITING);
    assert_eq!(rig.muxer.next_time(), None);

    rig.muxer.host_mut().busy = true;
    rig.send(Op::Request, 1, 5000);
    rig.pass(CONNECT_TIMEOUT);
    assert_eq!(rig.packets(), [(Op::Rst, 1, 5000)]);
    assert_eq!(rig.muxer.next_time(), None);
}

#[test]
fn when_all_memory_is_promised_nobody_is_connected_to() {
    let mut rig = rig();
    let mut opened = 0;
    for port in 0..9000 {
        rig.send(Op::Request, 1, port);
        opened += rig
            .packets()
            .iter()
            .filter(|(op, ..)| *op == Op::Response)
            .count();
    }
    assert_eq!(opened, 128 + 256 + 8192);
    assert_eq!(rig.muxer.host().connected, opened);
    // What ends makes room.
    rig.send(Op::Rst, 1, 0);
    rig.send(Op::Request, 1, 9999);
    assert_eq!(rig.packets(), [(Op::Response, 1, 9999)]);
}

#[test]
fn the_line_stays_short_while_the_guest_takes_nothing() {
    let mut rig = rig();
    for round in 0..10_000 {
        rig.send(Op::Request, 1, round % 2);
        rig.send(Op::Rst, 1, round % 2);
    }
    assert!(rig.muxer.line.len() <= MAX_RESETS + 1);
    assert_eq!(rig.packets(), []);
    assert!(!rig.muxer.has_packets());
}

#[test]
fn resets_are_bounded() {
    let mut rig = rig();
    for _ in 0..MAX_RESETS {
        assert!(rig.muxer.takes_packets());
        rig.send(Op::Rw, 1, 2);
    }
    assert!(!rig.muxer.takes_packets());
    for _ in 0..20_000 {
        rig.send(Op::Rw, 1, 2);
    }
    assert_eq!(rig.packets().len(), MAX_FORGETTABLE_RESETS);
    assert!(rig.muxer.takes_packets());
}

#[test]
fn everybody_gets_a_turn() {
    let mut rig = rig();
    for port in 0..3 {
        rig.send(Op::Request, 1, port);
    }
    let responses = rig.packets();
    assert_eq!(
        responses,
        [
            (Op::Response, 1, 0),
            (Op::Response, 1, 1),
            (Op::Response, 1, 2)
        ]
    );
    for round in 0..2 {
        for port in 0..3 {
            let key = Key {
                host_port: 1,
                guest_port: port,
            };
            let stream = rig.muxer.connections.get(&key).unwrap().stream().clone();
            stream.give(&[round; 100]);
            let ready = Readiness {
                readable: true,
                ..Readiness::default()
            };
            rig.muxer.on_ready(Token::Connection(key), ready, rig.now);
        }
    }
    let ports: Vec<u32> = rig.packets().iter().map(|(.., port)| *port).collect();
    assert_eq!(ports, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn clearing_forgets_all_but_the_numbers() {
    let mut rig = rig();
    rig.muxer
        .on_host_connect(FakeStream::default(), 1024, rig.now);
    rig.send(Op::Request, 1, 2);
    rig.send(Op::Rw, 9, 9);
    rig.muxer.clear();
    assert!(!rig.muxer.has_packets());
    assert_eq!(rig.muxer.connections(), 0);
    assert_eq!(rig.muxer.next_time(), None);
    assert_eq!(rig.muxer.next_local_port(), FIRST_LOCAL_PORT + 1);
    assert_eq!(rig.muxer.counters().opened_by_host, 1);
}
