//! Connections end: each direction on its own, both at once, politely and not.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use isopod_devices::vsock::packet::{Op, ShutdownFlags};
use rstest::rstest;

use crate::{
    rig::Rig,
    socket::{pattern, read_to_end},
};

#[test]
fn a_guest_that_closes_gets_its_reset_and_the_host_an_end() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    rig.send_data(&mut socket, b"bye");
    rig.send_shutdown(&mut socket, ShutdownFlags::all());
    rig.expect(Op::Rst);
    assert_eq!(read_to_end(&mut stream), b"bye");
    assert_eq!(rig.device.connections(), 0);
    // The ports can be used again at once.
    rig.send(socket.header(Op::Request), &[]);
    rig.expect(Op::Response);
}

#[test]
fn a_guest_that_sends_no_more_still_receives() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    rig.send_data(&mut socket, b"question");
    rig.send_shutdown(&mut socket, ShutdownFlags::SEND);
    assert_eq!(read_to_end(&mut stream), b"question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(rig.expect(Op::Rw).1, b"answer");
    drop(stream);
    let (shutdown, _) = rig.expect(Op::Shutdown);
    assert_eq!(shutdown.flags, ShutdownFlags::all().bits());
    rig.send(socket.header(Op::Rst), &[]);
    rig.expect_silence();
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_guest_that_receives_no_more_still_sends() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    rig.send_shutdown(&mut socket, ShutdownFlags::RECEIVE);
    let error = stream.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    rig.send_data(&mut socket, b"more");
    rig.send_shutdown(&mut socket, ShutdownFlags::SEND);
    // Together they are all.
    rig.expect(Op::Rst);
    assert_eq!(read_to_end(&mut stream), b"more");
}

#[test]
fn a_host_program_that_sends_no_more_still_receives() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(4096);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.expect(Op::Rw).1, b"question");
    let (shutdown, _) = rig.expect(Op::Shutdown);
    assert_eq!(shutdown.flags, ShutdownFlags::SEND.bits());
    rig.expect_silence();
    rig.send_data(&mut socket, b"answer");
    let mut got = [0; 6];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"answer");
    rig.send_shutdown(&mut socket, ShutdownFlags::SEND);
    assert_eq!(read_to_end(&mut stream), b"");
    // Nothing can move any more, so the device says that it is over.
    let (shutdown, _) = rig.expect(Op::Shutdown);
    assert_eq!(shutdown.flags, ShutdownFlags::all().bits());
    rig.send(socket.header(Op::Rst), &[]);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_host_program_that_receives_no_more_still_sends() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(4096);
    stream.shutdown(Shutdown::Read).unwrap();
    rig.send_data(&mut socket, b"nobody wants it");
    let (shutdown, _) = rig.expect(Op::Shutdown);
    assert_eq!(shutdown.flags, ShutdownFlags::RECEIVE.bits());
    // What the guest sends meanwhile is no mistake of its.
    rig.send_data(&mut socket, b"nor that");
    stream.write_all(b"but hear").unwrap();
    assert_eq!(rig.expect(Op::Rw).1, b"but hear");
    assert_eq!(rig.device.counters().guest_errors, 0);
}

#[test]
fn a_host_program_that_closes_is_announced_after_its_last_byte() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(10);
    stream.write_all(b"0123456789last").unwrap();
    drop(stream);
    let (header, payload) = rig.expect(Op::Rw);
    socket.note(&header);
    assert_eq!(payload, b"0123456789");
    // That nobody reads any more is known before that nobody writes.
    let (shutdown, _) = rig.expect(Op::Shutdown);
    assert_eq!(shutdown.flags, ShutdownFlags::RECEIVE.bits());
    rig.expect(Op::CreditRequest);
    rig.expect_silence();
    socket.drain();
    rig.send(socket.header(Op::CreditUpdate), &[]);
    assert_eq!(rig.expect(Op::Rw).1, b"last");
    let (shutdown, _) = rig.expect(Op::Shutdown);
    assert_eq!(shutdown.flags, ShutdownFlags::all().bits());
    // Linux closes with a SHUTDOWN of its own if it has not seen ours yet.
    rig.send_shutdown(&mut socket, ShutdownFlags::all());
    rig.expect(Op::Rst);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_guest_that_does_not_confirm_the_end_is_reset_after_a_time() {
    let mut rig = Rig::new();
    let (stream, _socket) = rig.host_connection(4096);
    drop(stream);
    rig.expect(Op::Shutdown);
    let begin = Instant::now();
    rig.expect(Op::Rst);
    let took = begin.elapsed();
    assert!((1500..15_000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn a_reset_by_the_guest_ends_the_stream() {
    let mut rig = Rig::new();
    let (mut stream, socket) = rig.host_connection(4096);
    rig.send(socket.header(Op::Rst), &[]);
    assert_eq!(read_to_end(&mut stream), b"");
    rig.expect_silence();
    assert_eq!(rig.device.connections(), 0);
}

/// Fills the host's stream and the device's buffer; how many bytes went in.
fn saturate(rig: &mut Rig, socket: &mut crate::socket::GuestSocket) -> usize {
    let mut sent = 0;
    while socket.credit() > 0 {
        let bytes = 60_000.min(socket.credit() as usize);
        rig.send_data(socket, &pattern(sent, bytes));
        sent += bytes;
        for (header, _) in std::mem::take(&mut rig.inbox) {
            socket.note(&header);
        }
    }
    sent
}

#[test]
fn bytes_that_a_closed_guest_sent_are_written_before_the_end() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    let sent = saturate(&mut rig, &mut socket);
    rig.send_shutdown(&mut socket, ShutdownFlags::all());
    // Not over before the host program has everything.
    rig.expect_silence();
    let reader = thread::spawn(move || read_to_end(&mut stream));
    rig.expect(Op::Rst);
    assert!(reader.join().unwrap() == pattern(0, sent));
}

#[test]
fn bytes_outlive_a_guest_that_forgot_the_connection() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    let sent = saturate(&mut rig, &mut socket);
    rig.send_shutdown(&mut socket, ShutdownFlags::all());
    rig.expect_silence();
    // What Linux does 8 s after a close.
    rig.send(socket.header(Op::Rst), &[]);
    assert_eq!(rig.device.connections(), 1, "kept for the host's sake");
    let reader = thread::spawn(move || read_to_end(&mut stream));
    rig.until(|rig| rig.device.connections() == 0);
    assert!(reader.join().unwrap() == pattern(0, sent));
    rig.expect_silence();
}

#[test]
fn bytes_for_a_host_program_that_left_are_dropped() {
    let mut rig = Rig::new();
    let (stream, mut socket) = rig.guest_connection(4096);
    saturate(&mut rig, &mut socket);
    rig.send_shutdown(&mut socket, ShutdownFlags::all());
    rig.send(socket.header(Op::Rst), &[]);
    assert_eq!(rig.device.connections(), 1);
    drop(stream);
    rig.until(|rig| rig.device.connections() == 0);
}

#[test]
fn an_impolite_reset_drops_what_is_kept() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    let sent = saturate(&mut rig, &mut socket);
    rig.send(socket.header(Op::Rst), &[]);
    assert_eq!(rig.device.connections(), 0);
    assert!(read_to_end(&mut stream).len() < sent);
}

#[rstest]
#[case::host_reads_first(true)]
#[case::host_closes_with_bytes_unread(false)]
fn the_end_is_polite_even_if_the_host_program_did_not_read(#[case] reads: bool) {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(4096);
    rig.send_data(&mut socket, b"data");
    if reads {
        stream.read_exact(&mut [0; 4]).unwrap();
    }
    drop(stream);
    let (shutdown, _) = rig.expect(Op::Shutdown);
    assert_eq!(shutdown.flags, ShutdownFlags::all().bits());
    rig.send(socket.header(Op::Rst), &[]);
    assert_eq!(rig.device.connections(), 0);
}

#[test]
fn payload_after_the_guest_said_it_was_done_is_a_fault() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    rig.send_shutdown(&mut socket, ShutdownFlags::SEND);
    rig.send_data(&mut socket, b"after all");
    rig.expect(Op::Rst);
    assert_eq!(read_to_end(&mut stream), b"");
    assert_eq!(rig.device.counters().guest_errors, 1);
}

#[test]
fn flags_accumulate_and_empty_ones_mean_nothing() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    rig.send_shutdown(&mut socket, ShutdownFlags::empty());
    rig.send_data(&mut socket, b"still here");
    let mut got = [0; 10];
    stream.read_exact(&mut got).unwrap();
    rig.send_shutdown(&mut socket, ShutdownFlags::SEND);
    rig.send_shutdown(&mut socket, ShutdownFlags::empty());
    rig.expect_silence();
    rig.send_shutdown(&mut socket, ShutdownFlags::RECEIVE);
    rig.expect(Op::Rst);
}

#[test]
fn an_accepted_connection_that_the_host_closes_at_once_is_answered_first() {
    let mut rig = Rig::new();
    rig.refills = false;
    while rig.rx.driver.free_descriptors() < 128 {
        // Use up the room, so that the answer waits.
        rig.send(crate::socket::GuestSocket::new(1, 2, 0).header(Op::Rw), &[]);
    }
    rig.inbox.clear();
    let listener = std::os::unix::net::UnixListener::bind(rig.path("vsock_9")).unwrap();
    let socket = crate::socket::GuestSocket::new(9, 9, 4096);
    rig.send(socket.header(Op::Request), &[]);
    drop(listener.accept().unwrap());
    while rig.serve_host(Duration::from_millis(20)) {}
    assert!(rig.inbox.is_empty());
    rig.refills = true;
    rig.refill();
    rig.kick();
    rig.expect(Op::Response);
    rig.expect(Op::Shutdown);
}
