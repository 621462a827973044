//! Packets of any content, in any order, between host programs that come, talk and leave: nothing
//! panics, memory and connections stay bounded, and the device never spins.
#![no_main]

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::atomic::{AtomicU32, Ordering},
};

use arbitrary::Arbitrary;
use isopod_devices::vsock::{
    Cause, VsockConfig, VsockDevice, VsockQueues,
    packet::{HEADER_LEN, Header},
};
use isopod_virtio::testing::{Buffer, DriverQueue, GuestRam};
use libfuzzer_sys::fuzz_target;

const SIZE: u16 = 8;
const ROOM: u32 = 256;

#[derive(Arbitrary, Debug)]
enum Step {
    /// A packet that is addressed rightly, from one of few ports to one of few.
    Packet {
        op: u8,
        host: u8,
        guest: u8,
        flags: u8,
        buf_alloc: u16,
        fwd_cnt: u16,
        payload: Vec<u8>,
    },
    /// Any bytes.
    Bytes(Vec<u8>),
    /// The guest takes what it got and gives new room.
    Refill,
    /// A host program connects and says this.
    Call(Vec<u8>),
    /// A host program connects and asks for a port.
    Connect(u8),
    /// A host program writes, reads, ends or leaves.
    Talk(u8, u16),
    Read(u8),
    End(u8, bool),
    Leave(u8),
    Reset,
}

static RUN: AtomicU32 = AtomicU32::new(0);

fuzz_target!(|steps: Vec<Step>| {
    let dir = std::env::temp_dir().join(format!(
        "isopod-fuzz-{}-{}",
        std::process::id(),
        RUN.fetch_add(1, Ordering::Relaxed)
    ));
    std::fs::create_dir(&dir).expect("a directory");
    run(&dir, steps);
    std::fs::remove_dir_all(&dir).expect("remove the directory");
});

fn run(dir: &std::path::Path, steps: Vec<Step>) {
    let mut ram = GuestRam::new(1 << 20);
    let mut rings: Vec<DriverQueue> = (0..3)
        .map(|_| DriverQueue::new(&mut ram, SIZE, true))
        .collect();
    let mut queues: Vec<_> = rings.iter().map(DriverQueue::device_side).collect();
    let (rooms, packets) = (
        ram.allocate(u64::from(ROOM) * u64::from(SIZE)),
        ram.allocate(0x20000),
    );
    let door = dir.join("vsock.sock");
    let listener = UnixListener::bind(&door).expect("a listener");
    let programs: Vec<_> = (0..2)
        .map(|port| {
            let program =
                UnixListener::bind(dir.join(format!("vsock_{port}"))).expect("a listener");
            program.set_nonblocking(true).expect("non-blocking");
            program
        })
        .collect();
    let config = VsockConfig {
        guest_cid: 3,
        connect_dir: dir.into(),
    };
    let mut device = VsockDevice::new(config, listener).expect("a device");
    let mut streams: Vec<UnixStream> = Vec::new();

    for step in steps.into_iter().take(200) {
        match step {
            Step::Packet {
                op,
                host,
                guest,
                flags,
                buf_alloc,
                fwd_cnt,
                payload,
            } => {
                let host_port = match host % 8 {
                    port @ 0..=3 => port.into(),
                    port => (1 << 30) + u32::from(port) - 4,
                };
                let header = Header {
                    src_cid: 3,
                    dst_cid: 2,
                    src_port: u32::from(guest % 4),
                    dst_port: host_port,
                    len: payload.len() as u32,
                    kind: 1,
                    op: u16::from(op % 9),
                    flags: flags.into(),
                    buf_alloc: buf_alloc.into(),
                    fwd_cnt: fwd_cnt.into(),
                };
                send(
                    &ram,
                    &mut rings,
                    packets,
                    &[&header.to_wire(), payload.as_slice()].concat(),
                );
            }
            Step::Bytes(bytes) => send(&ram, &mut rings, packets, &bytes),
            Step::Refill => {
                while let Some(used) = rings[0].take_used() {
                    assert!(used.written == 0 || used.written >= HEADER_LEN as u32);
                    assert!(used.written <= ROOM);
                }
                while rings[0].free_descriptors() > 0 {
                    rings[0].offer(&[Buffer::Writable(rooms, ROOM)]);
                }
            }
            Step::Call(line) => {
                if let Ok(mut stream) = UnixStream::connect(&door) {
                    stream.set_nonblocking(true).expect("non-blocking");
                    let _ = stream.write(&line);
                    streams.push(stream);
                }
            }
            Step::Connect(port) => {
                if let Ok(mut stream) = UnixStream::connect(&door) {
                    stream.set_nonblocking(true).expect("non-blocking");
                    let _ = writeln!(stream, "CONNECT {}", port % 4);
                    streams.push(stream);
                }
            }
            Step::Talk(n, bytes) => {
                if let Some(mut stream) = pick(&streams, n) {
                    let _ = stream.write(&vec![7; bytes.into()]);
                }
            }
            Step::Read(n) => {
                if let Some(mut stream) = pick(&streams, n) {
                    let _ = stream.read(&mut [0; 4096]);
                }
            }
            Step::End(n, write) => {
                if let Some(stream) = pick(&streams, n) {
                    let _ = stream.shutdown(match write {
                        true => std::net::Shutdown::Write,
                        false => std::net::Shutdown::Read,
                    });
                }
            }
            Step::Leave(n) => {
                if !streams.is_empty() {
                    streams.swap_remove(usize::from(n) % streams.len());
                }
            }
            Step::Reset => device.reset(),
        }
        for program in &programs {
            while let Ok((stream, _)) = program.accept() {
                stream.set_nonblocking(true).expect("non-blocking");
                streams.push(stream);
            }
        }
        for cause in [Cause::Queue, Cause::Host] {
            let [rx, tx, event] = queues.as_mut_slice() else {
                unreachable!()
            };
            let _ = device.handle(cause, &ram.memory, VsockQueues { rx, tx, event });
        }
        while rings[1].take_used().is_some() {}
        assert!(device.connections() <= 200);
    }
}

fn pick(streams: &[UnixStream], n: u8) -> Option<&UnixStream> {
    streams.get(usize::from(n).checked_rem(streams.len())?)
}

fn send(ram: &GuestRam, rings: &mut [DriverQueue], at: u64, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(0x20000)];
    if rings[1].free_descriptors() > 0 && !bytes.is_empty() {
        ram.write(at, bytes);
        rings[1].offer(&[Buffer::Readable(at, bytes.len() as u32)]);
    }
}
