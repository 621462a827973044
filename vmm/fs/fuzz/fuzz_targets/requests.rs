//! Sequences of requests of any content, into a device over a fresh directory: nothing panics, every
//! chain comes back, no answer is longer than its room, and what lies beside the directory stays as
//! it is.
#![no_main]

use std::fs;

use arbitrary::Arbitrary;
use isopod_fs::{queue::FsBackend, share::Share};
use isopod_memory::GuestMemoryHandle;
use isopod_virtio::testing::{Buffer, DriverQueue, GuestRam};
use libfuzzer_sys::fuzz_target;
use rustix::{
    fs::{Mode, OFlags},
    thread::CapabilitiesSecureBits,
};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use vmm_sys_util::epoll::EventSet;

#[derive(Arbitrary, Debug)]
enum Request {
    /// Bytes without form.
    Raw(Vec<u8>),
    /// A header that is right; small numbers, so that some name inodes that exist.
    Formed {
        opcode: u8,
        node: u8,
        uid: u8,
        body: Vec<u8>,
    },
}

#[derive(Arbitrary, Debug)]
struct Input {
    requests: Vec<(Request, u16)>,
}

fn bytes(request: Request) -> Vec<u8> {
    let (opcode, node, uid, body) = match request {
        Request::Raw(bytes) => return bytes,
        Request::Formed {
            opcode,
            node,
            uid,
            body,
        } => (opcode, node, uid, body),
    };
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect::<Vec<u8>>()
    };
    let length = 40 + body.len() as u32;
    let head = [
        length,
        opcode.into(),
        7,
        0,
        node.into(),
        0,
        uid.into(),
        0,
        1,
        0,
    ];
    [words(&head), body].concat()
}

/// As the jail has it: the thread keeps its capabilities whomever it makes files for. Without it the
/// first file for another user would be the last that this process reaches.
fn keep_capabilities() {
    let bits = CapabilitiesSecureBits::NO_SETUID_FIXUP;
    rustix::thread::set_capabilities_secure_bits(bits).expect("root");
}

fuzz_target!(init: keep_capabilities(), |input: Input| {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("share");
    fs::create_dir_all(root.join("d")).expect("a directory");
    fs::write(root.join("f"), "inside").expect("a file");
    fs::write(directory.path().join("secret"), "outside").expect("a file");
    let proc = rustix::fs::open("/proc/self/fd", OFlags::PATH, Mode::empty()).expect("/proc");
    let share = Share::new(&root, proc, 8).expect("a share");

    let mut ram = GuestRam::new(1 << 20);
    let mut driver = DriverQueue::new(&mut ram, 16, false);
    let (ask, answer) = (ram.allocate(0x10000), ram.allocate(0x10000));
    let memory = GuestMemoryHandle::new(ram.memory.clone());
    let vring = VringMutex::new(memory.clone(), 16).expect("a queue");
    *vring.get_mut().get_queue_mut() = driver.device_side();
    let device = FsBackend::new(share, 1, memory);

    for (request, room) in input.requests {
        let mut request = bytes(request);
        request.truncate(0x10000);
        ram.write(ask, &request);
        driver.offer(&[
            Buffer::Readable(ask, request.len() as u32),
            Buffer::Writable(answer, room.into()),
        ]);
        device
            .handle_event(0, EventSet::IN, std::slice::from_ref(&vring), 0)
            .expect("served");
        let used = driver.take_used().expect("the chain comes back");
        assert!(used.written <= room.into());
    }
    let secret = fs::read(directory.path().join("secret")).expect("it is still there");
    assert_eq!(secret, b"outside");
    assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 2);
});
