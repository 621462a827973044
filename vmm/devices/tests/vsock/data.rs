//! Bytes arrive, all of them, in order, and no more of them are on their way than was agreed.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use isopod_devices::vsock::packet::{Op, ShutdownFlags};
use rstest::rstest;

use crate::{
    rig::Rig,
    socket::{GuestSocket, pattern, read_to_end},
};

/// Bytes that the guest's side has read so far.
fn receive(rig: &mut Rig, socket: &mut GuestSocket, bytes: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < bytes {
        let (header, payload) = rig.next_packet();
        socket.note(&header);
        match Op::from_wire(header.op).unwrap() {
            Op::Rw => {
                got.extend(payload);
                // As Linux does: when the room that the peer knows of becomes small.
                socket.drain();
                rig.send(socket.header(Op::CreditUpdate), &[]);
            }
            Op::CreditRequest => {
                socket.drain();
                rig.send(socket.header(Op::CreditUpdate), &[]);
            }
            Op::CreditUpdate => {}
            other => panic!("{other:?}"),
        }
    }
    got
}

#[rstest]
#[case::plenty(1 << 20, 128, true)]
#[case::one_page(4096, 128, true)]
#[case::less_than_a_packet(100, 128, false)]
#[case::short_queue(1 << 16, 4, true)]
fn many_bytes_to_the_guest(
    #[case] buf_alloc: u32,
    #[case] queue_size: u16,
    #[case] event_idx: bool,
) {
    let mut rig = Rig::with(queue_size, event_idx);
    let (mut stream, mut socket) = rig.host_connection(buf_alloc);
    let total = if buf_alloc < 4096 { 1 << 20 } else { 16 << 20 };
    let sent = pattern(0, total);
    let writer = thread::spawn({
        let sent = sent.clone();
        move || {
            stream.write_all(&sent).unwrap();
            stream
        }
    });
    let got = receive(&mut rig, &mut socket, total);
    assert!(got == sent, "the bytes differ");
    drop(writer.join().unwrap());
    assert_eq!(rig.device.counters().bytes_to_guest, total as u64);
}

#[rstest]
#[case::large_packets(64 << 10, 128)]
#[case::small_packets(1000, 128)]
#[case::short_queue(64 << 10, 4)]
fn many_bytes_from_the_guest(#[case] packet: usize, #[case] queue_size: u16) {
    let mut rig = Rig::with(queue_size, true);
    let (mut stream, mut socket) = rig.guest_connection(4096);
    let total = 16 << 20;
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        let mut chunk = vec![0; 50_000];
        loop {
            match stream.read(&mut chunk).unwrap() {
                0 => return got,
                bytes => got.extend_from_slice(&chunk[..bytes]),
            }
            if got.len() % 17 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let sent = pattern(0, total);
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        for (header, _) in std::mem::take(&mut rig.inbox) {
            assert_eq!(Op::from_wire(header.op), Some(Op::CreditUpdate));
            socket.note(&header);
        }
        let bytes = packet.min(socket.credit() as usize).min(rest.len());
        if bytes == 0 {
            // Only the device can go on: it must tell us of room without being asked.
            rig.until(|rig| !rig.inbox.is_empty());
            continue;
        }
        let (now, later) = rest.split_at(bytes);
        rig.send_data(&mut socket, now);
        rest = later;
    }
    rig.send_shutdown(&mut socket, ShutdownFlags::all());
    loop {
        let (header, _) = rig.next_packet();
        match Op::from_wire(header.op).unwrap() {
            Op::Rst => break,
            Op::CreditUpdate => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(reader.join().unwrap() == sent, "the bytes differ");
    assert_eq!(rig.device.counters().bytes_from_guest, total as u64);
}

#[test]
fn both_directions_at_once() {
    let mut rig = Rig::new();
    let (stream, mut socket) = rig.host_connection(8192);
    let total = 4 << 20;
    let (down, up) = (pattern(0, total), pattern(7, total));
    let writer = thread::spawn({
        let (mut stream, down) = (stream.try_clone().unwrap(), down.clone());
        move || stream.write_all(&down).unwrap()
    });
    let reader = thread::spawn({
        let mut stream = stream.try_clone().unwrap();
        move || {
            let mut got = vec![0; total];
            stream.read_exact(&mut got).unwrap();
            got
        }
    });
    let (mut got, mut rest) = (Vec::new(), up.as_slice());
    while got.len() < total || !rest.is_empty() {
        let bytes = (10_000).min(socket.credit() as usize).min(rest.len());
        let (now, later) = rest.split_at(bytes);
        if bytes > 0 {
            rig.send_data(&mut socket, now);
            rest = later;
        } else if rig.inbox.is_empty() {
            rig.until(|rig| !rig.inbox.is_empty());
        }
        let mut read = 0;
        for (header, payload) in std::mem::take(&mut rig.inbox) {
            socket.note(&header);
            read += payload.len();
            got.extend(payload);
        }
        socket.drain();
        if read > 0 {
            rig.send(socket.header(Op::CreditUpdate), &[]);
        }
    }
    // What the device still holds for a full socket leaves only while the device is driven.
    rig.until(|_| reader.is_finished());
    writer.join().unwrap();
    assert!(got == down && reader.join().unwrap() == up);
}

#[test]
fn a_guest_without_room_is_asked_for_credit_once() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(0);
    stream.write_all(b"hello").unwrap();
    rig.expect(Op::CreditRequest);
    stream.write_all(b" world").unwrap();
    rig.expect_silence();
    socket.buf_alloc = 5;
    rig.send(socket.header(Op::CreditUpdate), &[]);
    let (header, payload) = rig.expect(Op::Rw);
    socket.note(&header);
    assert_eq!(payload, b"hello");
    rig.expect(Op::CreditRequest);
    socket.drain();
    rig.send(socket.header(Op::CreditUpdate), &[]);
    let (header, payload) = rig.expect(Op::Rw);
    socket.note(&header);
    assert_eq!(payload, b" worl");
    rig.expect(Op::CreditRequest);
    socket.drain();
    rig.send(socket.header(Op::CreditUpdate), &[]);
    assert_eq!(rig.expect(Op::Rw).1, b"d");
}

#[test]
fn a_credit_request_is_answered() {
    let mut rig = Rig::new();
    let (_stream, mut socket) = rig.guest_connection(4096);
    rig.send_data(&mut socket, b"12345");
    rig.send(socket.header(Op::CreditRequest), &[]);
    let (update, _) = rig.expect(Op::CreditUpdate);
    assert_eq!(update.fwd_cnt, 5);
}

#[test]
fn a_host_program_that_does_not_read_holds_the_guest_back() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    let mut sent = 0;
    while socket.credit() > 0 {
        let bytes = 60_000.min(socket.credit() as usize);
        rig.send_data(&mut socket, &pattern(sent, bytes));
        sent += bytes;
        for (header, _) in std::mem::take(&mut rig.inbox) {
            socket.note(&header);
        }
    }
    rig.expect_silence();
    // What is there when the guest is held back is what we promised, and what the kernel holds.
    assert!(sent < 1 << 20, "{sent} bytes were taken from the guest");

    // The bytes are not lost; and as they are read, the guest may go on.
    let mut got = vec![0; sent];
    let reader = thread::spawn(move || {
        stream.read_exact(&mut got).unwrap();
        (got, stream)
    });
    let (update, _) = rig.expect(Op::CreditUpdate);
    socket.note(&update);
    assert!(socket.credit() > 0);
    rig.until(|_| reader.is_finished());
    assert!(reader.join().unwrap().0 == pattern(0, sent));
}

#[test]
fn a_guest_that_gives_no_room_in_its_queue_holds_the_host_back() {
    let mut rig = Rig::new();
    let (stream, mut socket) = rig.host_connection(u32::MAX / 2);
    rig.refills = false;
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    // Until neither the queue nor the kernel's buffer takes any more.
    loop {
        match (&stream).write(&pattern(sent, 10_000)) {
            Ok(bytes) => sent += bytes,
            Err(_) if rig.serve_host(Duration::from_millis(20)) => {}
            Err(_) => break,
        }
    }
    let queued: usize = rig.inbox.iter().map(|(_, payload)| payload.len()).sum();
    assert!(
        sent > queued && sent < 2 << 20,
        "{sent} sent, {queued} queued"
    );
    rig.refills = true;
    rig.refill();
    rig.kick();
    assert!(receive(&mut rig, &mut socket, sent) == pattern(0, sent));
}

#[test]
fn a_busy_connection_leaves_room_for_others() {
    let mut rig = Rig::with(16, true);
    let (mut busy, mut busy_socket) = rig.host_connection(u32::MAX / 2);
    let (mut calm, mut calm_socket) = rig.host_connection(u32::MAX / 2);
    busy.set_nonblocking(true).unwrap();
    let (mut busy_packets, mut answers) = (0, 0);
    while answers < 50 {
        let _ = busy.write(&[1; 100_000]);
        calm.write_all(b"x").unwrap();
        let mut answered = false;
        let mut between = 0;
        while !answered {
            let (header, payload) = rig.next_packet();
            let socket = match header.src_port == calm_socket.host_port {
                true => &mut calm_socket,
                false => &mut busy_socket,
            };
            socket.note(&header);
            socket.drain();
            answered = payload == b"x";
            between += 1;
            busy_packets += u32::from(!answered);
        }
        assert!(between < 100, "{between} packets before the calm one's");
        answers += 1;
    }
    assert!(busy_packets > 100, "the busy one moved too");
}

#[test]
fn a_lagging_credit_does_not_confuse() {
    // A guest with several CPUs may queue packets in another order than it made them in.
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(10);
    stream.write_all(&[7; 30]).unwrap();
    let (header, _) = rig.expect(Op::Rw);
    socket.note(&header);
    rig.expect(Op::CreditRequest);
    let old = socket.header(Op::CreditUpdate);
    socket.drain();
    rig.send(socket.header(Op::CreditUpdate), &[]);
    rig.send(old, &[]);
    let (header, _) = rig.expect(Op::Rw);
    socket.note(&header);
    rig.expect(Op::CreditRequest);
    rig.expect_silence();
}

#[test]
fn nothing_is_written_by_the_device_before_the_guest_accepts() {
    let mut rig = Rig::new();
    let mut stream = rig.call(1024);
    stream.write_all(b"data").unwrap();
    let (request, _) = rig.expect(Op::Request);
    rig.expect_silence();
    let socket = GuestSocket::new(request.src_port, 1024, 4096);
    // Payload before the answer breaks the protocol.
    rig.send(
        isopod_devices::vsock::packet::Header {
            len: 3,
            ..socket.header(Op::Rw)
        },
        b"abc",
    );
    rig.expect(Op::Rst);
    assert_eq!(read_after_reset(stream), b"");
}

/// The device leaves what the host program sent unread, so its end may be a reset.
fn read_after_reset(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn every_byte_of_a_large_write_before_the_end_arrives() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(1 << 16);
    let writer = thread::spawn(move || {
        stream.write_all(&pattern(0, 1 << 20)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream
    });
    assert!(receive(&mut rig, &mut socket, 1 << 20) == pattern(0, 1 << 20));
    let (header, _) = loop {
        let packet = rig.next_packet();
        if packet.0.op != Op::CreditRequest as u16 {
            break packet;
        }
    };
    assert_eq!(header.op, Op::Shutdown as u16);
    assert_eq!(header.flags, ShutdownFlags::SEND.bits());
    let mut stream = writer.join().unwrap();
    rig.send_data(&mut socket, b"answer");
    rig.send_shutdown(&mut socket, ShutdownFlags::SEND);
    assert_eq!(read_to_end(&mut stream), b"answer");
}
