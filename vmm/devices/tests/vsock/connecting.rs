//! Connections come to be, or do not.

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use isopod_devices::vsock::packet::{Header, Op};
use rstest::rstest;

use crate::{
    rig::Rig,
    socket::{GuestSocket, read_line, read_to_end},
};

#[test]
fn a_host_program_reaches_a_port_of_the_guest() {
    let mut rig = Rig::new();
    let mut stream = rig.call(1024);
    let (request, _) = rig.expect(Op::Request);
    assert_eq!(request.dst_port, 1024);
    assert!(request.src_port >= 1 << 30);
    assert!(request.buf_alloc > 0);
    stream.set_nonblocking(true).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "no OK before the guest's");
    stream.set_nonblocking(false).unwrap();

    let socket = GuestSocket::new(request.src_port, 1024, 4096);
    rig.send(socket.header(Op::Response), &[]);
    assert_eq!(read_line(&mut stream), format!("OK {}\n", request.src_port));
    assert_eq!(rig.device.counters().opened_by_host, 1);
}

#[test]
fn the_guest_reaches_a_host_program() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.guest_connection(4096);
    rig.send_data(&mut socket, b"hello");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    stream.write_all(b"world").unwrap();
    let (header, payload) = rig.expect(Op::Rw);
    socket.note(&header);
    assert_eq!(payload, b"world");
    assert_eq!(rig.device.counters().opened_by_guest, 1);
}

#[rstest]
#[case::nobody_listens(77)]
#[case::no_port(u32::MAX)]
#[case::reserved(0xffff_fff2)]
fn a_port_that_nobody_serves_is_reset(#[case] port: u32) {
    let mut rig = Rig::new();
    let socket = GuestSocket::new(port, 5000, 4096);
    rig.send(socket.header(Op::Request), &[]);
    let (reset, _) = rig.expect(Op::Rst);
    assert_eq!((reset.src_port, reset.dst_port), (port, 5000));
    assert_eq!(rig.device.connections(), 0);
    assert_eq!(rig.device.counters().refused, 1);
}

#[test]
fn a_socket_file_without_a_listener_is_reset() {
    let mut rig = Rig::new();
    drop(UnixListener::bind(rig.path("vsock_77")).unwrap());
    rig.send(GuestSocket::new(77, 5000, 4096).header(Op::Request), &[]);
    rig.expect(Op::Rst);
}

#[test]
fn a_guest_that_refuses_ends_the_host_program_s_stream() {
    let mut rig = Rig::new();
    let mut stream = rig.call(9);
    let (request, _) = rig.expect(Op::Request);
    let socket = GuestSocket::new(request.src_port, 9, 0);
    rig.send(socket.header(Op::Rst), &[]);
    assert_eq!(read_to_end(&mut stream), b"");
    rig.expect_silence();
}

#[test]
fn a_host_program_that_leaves_before_the_answer_is_forgotten() {
    let mut rig = Rig::new();
    let stream = rig.call(9);
    rig.expect(Op::Request);
    drop(stream);
    rig.expect(Op::Rst);
    assert_eq!(rig.device.connections(), 0);

    // Gone before it was even let in.
    drop(rig.call(9));
    rig.until(|rig| rig.device.counters().opened_by_host == 2 && rig.device.connections() == 0);
}

#[test]
fn bytes_sent_right_behind_the_line_reach_the_guest() {
    let mut rig = Rig::new();
    let mut stream = rig.call(1024);
    stream.write_all(b"early").unwrap();
    let (request, _) = rig.expect(Op::Request);
    let socket = GuestSocket::new(request.src_port, 1024, 4096);
    rig.send(socket.header(Op::Response), &[]);
    assert_eq!(rig.expect(Op::Rw).1, b"early");
}

#[rstest]
#[case::no_number("CONNECT x\n")]
#[case::something_else("GET / HTTP/1.1\r\n")]
#[case::no_line("CONNECT                                  ")]
fn a_caller_that_says_something_else_is_sent_away(#[case] line: &str) {
    let mut rig = Rig::new();
    let mut stream = rig.call(1);
    rig.expect(Op::Request);
    rig.device.reset();
    rig.kick();
    drop(stream);
    stream = std::os::unix::net::UnixStream::connect(rig.path("vsock.sock")).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    rig.until(|rig| rig.device.counters().refused == 1);
    assert_eq!(read_to_end_or_reset(&mut stream), b"");
    rig.expect_silence();
}

/// The device closes without having read what it did not want.
fn read_to_end_or_reset(stream: &mut std::os::unix::net::UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            bytes
        }
    }
}

#[test]
fn callers_that_say_nothing_keep_others_out_only_for_a_time() {
    let mut rig = Rig::new();
    let idle: Vec<_> = (0..400)
        .map(|_| std::os::unix::net::UnixStream::connect(rig.path("vsock.sock")).unwrap())
        .collect();
    let _real = rig.call(1024);
    let begin = Instant::now();
    rig.expect(Op::Request);
    // 128 at a time, 2 s each.
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(18), "{took:?}");
    assert!(rig.device.counters().refused >= 384);
    drop(idle);
}

#[test]
fn a_host_program_that_is_busy_is_tried_again() {
    let mut rig = Rig::new();
    let path = rig.path("vsock_7");
    let listener = narrow_listener(&path);
    // Connections beyond the listen queue wait in the device.
    for port in 0..4 {
        rig.send(
            GuestSocket::new(7, 5000 + port, 4096).header(Op::Request),
            &[],
        );
    }
    let mut accepted = Vec::new();
    rig.until(|rig| {
        // One at a time, so that the rest must be tried again.
        if rig.device.counters().opened_by_guest > accepted.len() as u64 {
            accepted.push(listener.accept().unwrap());
        }
        accepted.len() == 4
    });
    for port in 0..4 {
        let (response, _) = rig.expect(Op::Response);
        assert_eq!(response.dst_port, 5000 + port, "first come, first served");
    }
}

#[test]
fn a_host_program_that_stays_busy_is_given_up() {
    let mut rig = Rig::new();
    let path = rig.path("vsock_7");
    let _listener = narrow_listener(&path);
    for port in 0..4 {
        rig.send(
            GuestSocket::new(7, 5000 + port, 4096).header(Op::Request),
            &[],
        );
    }
    // The guest gives the third up itself.
    rig.send(GuestSocket::new(7, 5002, 4096).header(Op::Rst), &[]);
    let mut ops = Vec::new();
    rig.until(|rig| {
        ops.extend(
            rig.inbox
                .drain(..)
                .map(|(header, _)| (header.dst_port, header.op)),
        );
        ops.len() == 3
    });
    ops.sort_unstable();
    assert_eq!(
        ops,
        [
            (5000, Op::Response as u16),
            (5001, Op::Response as u16),
            (5003, Op::Rst as u16)
        ]
    );
    rig.expect_silence();
}

/// A listener that takes two connections before somebody accepts one.
fn narrow_listener(path: &std::path::Path) -> UnixListener {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 1).unwrap();
    socket.into()
}

#[test]
fn ports_that_are_in_use_are_passed_over() {
    let mut rig = Rig::new();
    // The guest happens to use the ports that the next host program would get.
    let next = rig.device.save().next_local_port;
    let _listener = UnixListener::bind(rig.path(&format!("vsock_{next}"))).unwrap();
    rig.send(GuestSocket::new(next, 1024, 4096).header(Op::Request), &[]);
    rig.expect(Op::Response);
    let _stream = rig.call(1024);
    let (request, _) = rig.expect(Op::Request);
    assert_eq!(request.src_port, next + 1);
}

#[test]
fn a_second_request_for_a_live_connection_ends_it() {
    let mut rig = Rig::new();
    let (mut stream, socket) = rig.guest_connection(4096);
    rig.send(socket.header(Op::Request), &[]);
    rig.expect(Op::Rst);
    assert_eq!(read_to_end(&mut stream), b"");
    assert_eq!(rig.device.counters().guest_errors, 1);
}

#[test]
fn packets_of_unknown_connections_are_reset_but_resets_are_not() {
    let mut rig = Rig::new();
    let socket = GuestSocket::new(1, 2, 4096);
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Rw,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        rig.send(socket.header(op), &[]);
        let (reset, _): (Header, _) = rig.expect(Op::Rst);
        assert_eq!((reset.src_port, reset.dst_port), (1, 2), "{op:?}");
    }
    rig.send(socket.header(Op::Rst), &[]);
    rig.expect_silence();
}
