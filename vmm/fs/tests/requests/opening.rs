//! What an open file's answer says: whether the guest's cache still holds, and whether closing is told.

use std::{fs, path::Path};

use crate::{device::Device, support::*};

#[test]
fn the_guests_cache_is_kept_exactly_while_the_content_is_the_same() {
    const KEEP_CACHE: u64 = 2;
    let mut device = Device::new(100);
    let path = device.share().join("f");
    let node = device.lookup(ROOT, b"f").unwrap();
    let mut keeps = || {
        let answer = device.call(OPEN, node, &words(&[0, 0])).unwrap();
        number(&answer, 8, 4) & KEEP_CACHE != 0
    };
    // Older than a tick of the file system's clock.
    let settle = || std::thread::sleep(std::time::Duration::from_millis(50));
    settle();
    assert!(!keeps(), "never opened before");
    assert!(keeps(), "nothing happened");
    fs::write(&path, "INSIDE").unwrap();
    assert!(!keeps(), "changed, of the same size");
    assert!(
        !keeps(),
        "changed so recently that it may change again unseen"
    );
    settle();
    assert!(!keeps());
    assert!(keeps());
}

#[test]
fn closing_is_told_only_where_the_host_has_something_to_say_then() {
    const NO_FLUSH: u64 = 1 << 5;
    let silent = |device: &mut Device, name: &[u8], flags: u32| {
        let node = device.lookup(ROOT, name).unwrap();
        let answer = device.call(OPEN, node, &words(&[flags, 0])).unwrap();
        number(&answer, 8, 4) & NO_FLUSH != 0
    };
    let (read, write) = (0, 1);
    let mut local = Device::new(100);
    assert!(silent(&mut local, b"f", read));
    assert!(silent(&mut local, b"f", write), "a local file system");
    let create = [words(&[0o101, 0o100644, 0, 0]), name_of(b"new")].concat();
    let answer = local.call(CREATE, ROOT, &create).unwrap();
    let open_out = answer.len() - 16;
    assert!(number(&answer, open_out + 8, 4) & NO_FLUSH != 0);

    // Not a file system that is known to be silent.
    let directory = tempfile::tempdir().unwrap();
    let proc = format!("/proc/{}", std::process::id());
    let mut other = Device::serving(Path::new(&proc), directory, 100);
    assert!(silent(&mut other, b"comm", read));
    assert!(!silent(&mut other, b"comm", write));
}
