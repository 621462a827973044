//! Numbers of inodes: those never given out, and more of them than descriptors.

use std::fs;

use crate::{device::Device, support::*};

#[test]
fn numbers_that_were_never_given_out_are_refused() {
    let mut device = Device::new(100);
    let file = device.lookup(ROOT, b"f").unwrap();
    let handle = number(&device.call(OPEN, file, &words(&[0, 0])).unwrap(), 0, 8);
    for node in [0, 2000, u64::MAX] {
        assert!(device.lookup(node, b"f").is_err());
        // A handle belongs to the inode that it was opened by.
        assert!(
            device
                .call(RELEASE, node, &[longs(&[handle]), vec![0; 16]].concat())
                .is_err()
        );
    }
    device.call(FORGET_AND_ANSWER, file, &[]).unwrap_err();
    assert!(
        device
            .send(&message(FORGET, file, (0, 0), &longs(&[1])), 0x100)
            .is_empty()
    );
    assert_eq!(device.call(GETATTR, file, &[0; 16]), Err(libc::ESTALE));
    // The root cannot be forgotten.
    device.send(&message(FORGET, ROOT, (0, 0), &longs(&[u64::MAX])), 0x100);
    device.lookup(ROOT, b"f").unwrap();
}

/// An opcode that does not exist.
const FORGET_AND_ANSWER: u32 = 999;

#[test]
fn inodes_beyond_the_limit_are_let_go_and_found_again() {
    let mut device = Device::new(64);
    for n in 0..400 {
        fs::write(
            device.share().join(format!("d/{n}")),
            format!("content {n}"),
        )
        .unwrap();
    }
    let before = open_descriptors();
    let directory = device.lookup(ROOT, b"d").unwrap();
    let nodes: Vec<u64> = (0..400)
        .map(|n| device.lookup(directory, n.to_string().as_bytes()).unwrap())
        .collect();
    assert!(open_descriptors() < before + 200, "descriptors are bounded");
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(
            device.read(*node, 100).unwrap(),
            format!("content {n}").into_bytes()
        );
    }
    // The guest renames and unlinks files that are let go, and goes on with their numbers.
    for n in 0..200 {
        let names = [
            name_of(n.to_string().as_bytes()),
            name_of(format!("new{n}").as_bytes()),
        ];
        let body = [longs(&[directory]), names.concat()].concat();
        device.call(RENAME, directory, &body).unwrap();
    }
    for n in 200..400 {
        device
            .call(UNLINK, directory, &name_of(n.to_string().as_bytes()))
            .unwrap();
    }
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(
            device.read(*node, 100).unwrap(),
            format!("content {n}").into_bytes(),
            "{n}"
        );
    }
}

#[test]
fn a_let_go_inode_that_the_host_replaced_is_stale_not_another_file() {
    let mut device = Device::new(64);
    for n in 0..300 {
        fs::write(device.share().join(format!("d/{n}")), "old").unwrap();
    }
    let directory = device.lookup(ROOT, b"d").unwrap();
    let nodes: Vec<u64> = (0..300)
        .map(|n| device.lookup(directory, n.to_string().as_bytes()).unwrap())
        .collect();
    for n in 0..300 {
        let path = device.share().join(format!("d/{n}"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
    }
    let mut stale = 0;
    for node in nodes {
        match device.read(node, 100) {
            Ok(content) => assert_eq!(content, b"old", "held by its descriptor"),
            Err(libc::ESTALE) => stale += 1,
            Err(error) => panic!("errno {error}"),
        }
    }
    assert!(stale > 100, "{stale} were let go");
}

#[test]
fn directories_nested_beyond_reason_do_not_exhaust_the_stack() {
    let mut device = Device::new(64);
    let mut node = ROOT;
    for _ in 0..3000 {
        device
            .call(MKDIR, node, &[words(&[0o755, 0]), name_of(b"n")].concat())
            .unwrap();
        node = device.lookup(node, b"n").unwrap();
    }
    // The guest forgets everything at once.
    device.init();
    device.lookup(ROOT, b"n").unwrap();
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
