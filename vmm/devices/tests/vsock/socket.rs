//! The two ends of a connection: the guest's socket, which counts credit as Linux does, and the stream of
//! the host's program.

use std::{io::Read, os::unix::net::UnixStream};

use isopod_devices::vsock::packet::{HOST_CID, Header, Op, TYPE_STREAM};

use crate::rig::{GUEST_CID, PATIENCE};

/// The guest's end of a connection.
#[derive(Debug)]
pub struct GuestSocket {
    pub host_port: u32,
    pub guest_port: u32,
    pub buf_alloc: u32,
    pub received: u32,
    pub forwarded: u32,
    pub sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
}

impl GuestSocket {
    pub fn new(host_port: u32, guest_port: u32, buf_alloc: u32) -> Self {
        Self {
            host_port,
            guest_port,
            buf_alloc,
            received: 0,
            forwarded: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
        }
    }

    pub fn header(&self, op: Op) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    /// Takes note of a packet from the device, and checks that it keeps to our credit.
    pub fn note(&mut self, header: &Header) {
        assert_eq!(
            (header.src_port, header.dst_port),
            (self.host_port, self.guest_port)
        );
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        assert!(
            self.sent.wrapping_sub(header.fwd_cnt) <= header.buf_alloc,
            "the device has forwarded more than it got: {header:?}"
        );
        self.received = self.received.wrapping_add(header.len);
        assert!(
            self.received.wrapping_sub(self.forwarded) <= self.buf_alloc,
            "the device ignores our credit"
        );
    }

    /// Bytes that the socket may send.
    pub fn credit(&self) -> u32 {
        self.peer_buf_alloc - self.sent.wrapping_sub(self.peer_fwd_cnt)
    }

    /// The application has read everything.
    pub fn drain(&mut self) {
        self.forwarded = self.received;
    }
}

pub fn read_line(stream: &mut UnixStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        match stream.read(&mut byte).unwrap() {
            0 => break,
            _ => line.push(byte[0].into()),
        }
    }
    line
}

/// Whatever is in the stream up to its end.
pub fn read_to_end(stream: &mut UnixStream) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Bytes that tell their position.
pub fn pattern(from: usize, bytes: usize) -> Vec<u8> {
    (from..from + bytes)
        .map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}
