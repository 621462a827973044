//! Thousands of connections.

use std::{
    collections::HashMap,
    io::{Read, Write},
};

use isopod_devices::vsock::packet::{Op, ShutdownFlags};

use crate::{rig::Rig, socket::GuestSocket};

#[test]
fn five_thousand_connections_at_once() {
    const COUNT: usize = 5000;
    let mut rig = Rig::new();
    let mut calls = Vec::new();
    let mut sockets: HashMap<u32, GuestSocket> = HashMap::new();
    while sockets.len() < COUNT {
        if calls.len() < COUNT {
            calls.push(rig.call(1024));
        }
        rig.serve_host(std::time::Duration::ZERO);
        for (header, _) in std::mem::take(&mut rig.inbox) {
            assert_eq!(header.op, Op::Request as u16);
            let mut socket = GuestSocket::new(header.src_port, 1024, 4096);
            socket.note(&header);
            rig.send(socket.header(Op::Response), &[]);
            assert!(sockets.insert(header.src_port, socket).is_none());
        }
    }
    assert_eq!(rig.device.connections(), COUNT);

    // Every one of them works, in both directions, and gets nobody else's bytes.
    for (n, stream) in calls.iter_mut().enumerate() {
        let line = crate::socket::read_line(stream);
        let port: u32 = line.trim().strip_prefix("OK ").unwrap().parse().unwrap();
        stream.write_all(&(n as u32).to_be_bytes()).unwrap();
        let (header, payload) = rig.expect(Op::Rw);
        assert_eq!(header.src_port, port);
        assert_eq!(payload, (n as u32).to_be_bytes());
        let mut socket = sockets.remove(&port).unwrap();
        socket.note(&header);
        rig.send_data(&mut socket, &payload);
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, payload.as_slice());
        sockets.insert(port, socket);
    }

    // Half are closed by the host, half by the guest.
    let guest_closes: Vec<u32> = sockets.keys().copied().take(COUNT / 2).collect();
    for port in guest_closes {
        let mut socket = sockets.remove(&port).unwrap();
        rig.send_shutdown(&mut socket, ShutdownFlags::all());
        rig.expect(Op::Rst);
    }
    drop(calls);
    while !sockets.is_empty() {
        let (header, _) = rig.expect(Op::Shutdown);
        let socket = sockets.remove(&header.src_port).unwrap();
        rig.send(socket.header(Op::Rst), &[]);
    }
    assert_eq!(rig.device.connections(), 0);
    assert_eq!(rig.device.counters().guest_errors, 0);
}
