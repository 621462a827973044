//! A guest that does what it must not. Nothing panics, nothing grows, others are served.

use std::{io::Read, os::unix::net::UnixListener, time::Duration};

use isopod_devices::vsock::packet::{HEADER_LEN, Header, Op, ShutdownFlags};
use isopod_virtio::testing::Buffer;
use proptest::prelude::*;
use rstest::rstest;

use crate::{
    rig::{RX_BUFFER, Rig},
    socket::{GuestSocket, read_to_end},
};

/// After whatever happened, a well-behaved connection works.
fn still_serves(rig: &mut Rig) {
    rig.inbox.clear();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    rig.send_data(&mut socket, b"still there");
    let mut got = [0; 11];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still there");
}

#[rstest]
#[case::seqpacket(|header: &mut Header| header.kind = 2)]
#[case::unknown_type(|header: &mut Header| header.kind = 0xffff)]
#[case::operation_zero(|header: &mut Header| header.op = 0)]
#[case::unknown_operation(|header: &mut Header| header.op = 8)]
#[case::another_host(|header: &mut Header| header.dst_cid = 3)]
#[case::payload_longer_than_the_packet(|header: &mut Header| header.len = 1)]
#[case::huge_payload(|header: &mut Header| header.len = u32::MAX)]
fn a_packet_that_makes_no_sense_is_reset(#[case] spoil: fn(&mut Header)) {
    let mut rig = Rig::new();
    let mut header = GuestSocket::new(1, 2, 4096).header(Op::Rw);
    spoil(&mut header);
    rig.send(header, &[]);
    let (reset, _) = rig.expect_any_source(Op::Rst);
    assert_eq!((reset.src_port, reset.dst_port), (1, 2));
    assert_eq!(rig.device.counters().guest_errors, 1);
    still_serves(&mut rig);
}

#[rstest]
#[case::operation_zero(|header: &mut Header| header.op = 0)]
#[case::payload_longer_than_the_packet(|header: &mut Header| header.len = 100)]
#[case::huge_payload(|header: &mut Header| header.len = u32::MAX)]
fn a_connection_does_not_survive_nonsense(#[case] spoil: fn(&mut Header)) {
    let mut rig = Rig::new();
    let (mut stream, socket) = rig.guest_connection(4096);
    let mut header = socket.header(Op::Rw);
    spoil(&mut header);
    rig.send(header, b"short");
    rig.expect(Op::Rst);
    assert_eq!(read_to_end(&mut stream), b"");
    assert_eq!(rig.device.connections(), 0);
    still_serves(&mut rig);
}

#[test]
fn a_packet_in_somebody_else_s_name_is_not_even_answered() {
    let mut rig = Rig::new();
    let (_stream, socket) = rig.guest_connection(4096);
    let header = Header {
        src_cid: 43,
        ..socket.header(Op::Rst)
    };
    rig.send(header, &[]);
    rig.expect_silence();
    assert_eq!(rig.device.connections(), 1);
    assert_eq!(rig.device.counters().guest_errors, 1);
}

#[test]
fn a_packet_shorter_than_a_header_is_counted() {
    let mut rig = Rig::new();
    rig.send_bytes(&[0; HEADER_LEN - 1]);
    rig.expect_silence();
    assert_eq!(rig.device.counters().guest_errors, 1);
    still_serves(&mut rig);
}

#[test]
fn a_guest_that_ignores_our_credit_is_reset() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    let mut sent = 0;
    while rig
        .inbox
        .iter()
        .all(|(header, _)| header.op != Op::Rst as u16)
    {
        rig.send_data(&mut socket, &[1; 60_000]);
        sent += 60_000;
        assert!(sent < 4 << 20, "the device takes everything");
    }
    assert_eq!(rig.device.counters().guest_errors, 1);
    assert_eq!(rig.device.connections(), 0);
    assert!(read_to_end(&mut stream).len() < sent);
    rig.inbox.clear();
    still_serves(&mut rig);
}

#[test]
fn a_guest_that_claims_to_have_read_what_was_never_sent_gains_nothing() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(10);
    std::io::Write::write_all(&mut stream, &[1; 100]).unwrap();
    let (header, _) = rig.expect(Op::Rw);
    socket.note(&header);
    rig.expect(Op::CreditRequest);
    for lie in [11, 1000, u32::MAX / 2, u32::MAX] {
        let update = Header {
            fwd_cnt: lie,
            ..socket.header(Op::CreditUpdate)
        };
        rig.send(update, &[]);
        rig.expect_silence();
    }
}

#[test]
fn chains_of_the_wrong_shape_are_answered_with_nothing() {
    let mut rig = Rig::new();
    let buffer = rig.ram.allocate(1 << 10);
    let tx = &mut rig.tx.driver;
    // Writable where the device reads; more than a packet can be; outside of memory.
    tx.offer(&[Buffer::Writable(buffer, 100)]);
    tx.offer(&[Buffer::Readable(0, 128 << 10)]);
    tx.offer(&[Buffer::Readable(u64::MAX - 4, 44)]);
    rig.device_only_kick();
    for _ in 0..3 {
        assert_eq!(rig.tx.driver.take_used().map(|used| used.written), Some(0));
    }
    assert_eq!(rig.device.queue_counters().tx.malformed, 3);
    still_serves(&mut rig);
}

#[test]
fn room_that_no_payload_fits_into_is_not_used() {
    let mut rig = Rig::without_buffers(16, true);
    rig.refills = false;
    for bytes in [1, HEADER_LEN as u32 - 1, HEADER_LEN as u32, RX_BUFFER] {
        rig.offer_rx(bytes);
    }
    rig.send(GuestSocket::new(1, 2, 0).header(Op::Rw), &[]);
    rig.expect(Op::Rst);
    assert_eq!(rig.device.counters().guest_errors, 3);
}

#[test]
fn a_header_and_payload_may_be_split_anywhere() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    for split in [1, 16, 43, 44, 45, 50] {
        let header = Header {
            len: 10,
            ..socket.header(Op::Rw)
        };
        let bytes = [header.to_wire().as_slice(), b"0123456789"].concat();
        let (one, two) = (rig.ram.allocate(64), rig.ram.allocate(64));
        let (front, back) = bytes.split_at(split);
        rig.ram.write(one, front);
        rig.ram.write(two, back);
        rig.tx.driver.offer(&[
            Buffer::Readable(one, front.len() as u32),
            Buffer::Readable(two, back.len() as u32),
        ]);
        rig.device_only_kick();
        rig.tx.driver.take_used().unwrap();
        socket.sent += 10;
        let mut got = [0; 10];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"0123456789");
    }
}

#[test]
fn a_guest_that_takes_no_answers_is_not_served_without_end() {
    let mut rig = Rig::new();
    rig.refills = false;
    // Each of these is answered by a reset; the queue has room for 128 of them.
    let stray = GuestSocket::new(1, 2, 4096).header(Op::Rw);
    let mut taken = 0;
    for _ in 0..2000 {
        if rig.tx.driver.free_descriptors() == 0 {
            break;
        }
        rig.queue_bytes(&stray.to_wire());
        taken += 1;
        rig.kick();
    }
    assert!(taken < 700, "{taken} packets were taken");
    // It goes on as soon as there is room, without another notification of the tx queue.
    rig.refills = true;
    rig.refill();
    rig.kick();
    rig.until(|rig| rig.inbox.len() == taken);
    still_serves(&mut rig);
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let mut rig = Rig::new();
    rig.refills = false;
    let listener = UnixListener::bind(rig.path("vsock_9")).unwrap();
    listener.set_nonblocking(true).unwrap();
    for round in 0..20_000u32 {
        let socket = GuestSocket::new(9, round % 3, 4096);
        rig.send(socket.header(Op::Request), &[]);
        rig.send(socket.header(Op::Rst), &[]);
        while listener.accept().is_ok() {}
    }
    assert_eq!(rig.device.connections(), 0);
    rig.refills = true;
    rig.refill();
    rig.kick();
    while rig.serve_host(Duration::from_millis(20)) {}
    still_serves(&mut rig);
}

#[test]
fn broken_rings_are_left_alone() {
    let mut rig = Rig::new();
    rig.tx.driver.set_available_index(1000);
    for _ in 0..3 {
        rig.kick();
    }
    assert_eq!(rig.device.queue_counters().tx.broken, 3);
    assert!(!rig.serve_host(Duration::ZERO), "no busy loop");
}

#[test]
fn a_flood_of_connections_is_refused_when_memory_is_promised_away() {
    let mut rig = Rig::new();
    let listener = UnixListener::bind(rig.path("vsock_9")).unwrap();
    let mut accepted = Vec::new();
    let (mut answered, mut refused) = (0, 0);
    // As many descriptors as tests may use are kept for other tests.
    for port in 0..2000 {
        rig.send(GuestSocket::new(9, port, 4096).header(Op::Request), &[]);
        for (header, _) in std::mem::take(&mut rig.inbox) {
            match header.op {
                op if op == Op::Response as u16 => {
                    answered += 1;
                    // The more connections, the less is promised to each.
                    assert!(answered < 128 || header.buf_alloc <= 256 << 10);
                    assert!(answered <= 384 || header.buf_alloc == 8 << 10);
                    accepted.push(listener.accept().unwrap());
                }
                op if op == Op::Rst as u16 => refused += 1,
                _ => {}
            }
        }
    }
    assert_eq!(answered + refused, 2000);
    assert_eq!(rig.device.connections(), answered);
}

/// What a guest might send: often nearly right.
fn any_packet() -> impl Strategy<Value = (Header, Vec<u8>)> {
    let port = prop_oneof![Just(9u32), Just(1000), Just(1 << 30), any::<u32>()];
    let fields = (
        prop_oneof![9 => Just(42u64), 1 => any::<u64>()],
        prop_oneof![9 => Just(2u64), 1 => any::<u64>()],
        0u32..4,
        port,
        prop_oneof![9 => Just(None), 1 => any::<u32>().prop_map(Some)],
        prop_oneof![9 => Just(1u16), 1 => any::<u16>()],
        prop_oneof![9 => 1u16..8, 1 => any::<u16>()],
        prop_oneof![9 => 0u32..4, 1 => any::<u32>()],
        any::<u32>(),
        prop_oneof![0u32..100, any::<u32>()],
    );
    (fields, prop::collection::vec(any::<u8>(), 0..100)).prop_map(|(fields, payload)| {
        let (src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt) =
            fields;
        let header = Header {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len: len.unwrap_or(payload.len() as u32),
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        };
        (header, payload)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any packets in any order, with host programs that talk, listen and leave.
    #[test]
    fn no_sequence_of_packets_confuses_the_device(
        packets in prop::collection::vec((any_packet(), 0u8..8), 1..60),
    ) {
        let mut rig = Rig::new();
        let listener = UnixListener::bind(rig.path("vsock_9")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut streams = Vec::new();
        for ((header, payload), host) in packets {
            rig.send(header, &payload);
            match host {
                0 => streams.push(rig.call(header.src_port)),
                1 => { streams.pop(); }
                2 => {
                    if let Some(stream) = streams.last_mut() {
                        stream.set_nonblocking(true).unwrap();
                        let _ = std::io::Write::write(stream, &[1; 5000]);
                    }
                }
                3 => {
                    if let Some(stream) = streams.last() {
                        let _ = stream.shutdown(std::net::Shutdown::Write);
                    }
                }
                _ => {}
            }
            if let Ok((stream, _)) = listener.accept() {
                streams.push(stream);
            }
            rig.serve_host(Duration::ZERO);
        }
        drop(streams);
        rig.serve_host(Duration::ZERO);
        // Whatever is left can be cleared by resets from the guest.
        rig.inbox.clear();
        rig.device.reset();
        prop_assert_eq!(rig.device.connections(), 0);
        rig.kick();
        still_serves(&mut rig);
    }
}

#[test]
fn shutdown_of_a_connection_that_was_only_requested_is_a_fault() {
    let mut rig = Rig::new();
    let mut stream = rig.call(5);
    let (request, _) = rig.expect(Op::Request);
    let mut socket = GuestSocket::new(request.src_port, 5, 4096);
    rig.send_shutdown(&mut socket, ShutdownFlags::all());
    rig.expect(Op::Rst);
    assert_eq!(read_to_end(&mut stream), b"");
}
