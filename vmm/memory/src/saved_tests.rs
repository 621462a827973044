use std::os::unix::fs::MetadataExt;

use super::*;
use crate::{FileRegion, shared};

const LOW: usize = 0x40_0000;
const HIGH: u64 = 1 << 32;

fn new() -> GuestMemory {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(2 * LOW as u64).unwrap();
    let low = FileRegion {
        start: 0,
        offset: 0,
        bytes: LOW,
    };
    let high = FileRegion {
        start: HIGH,
        offset: LOW as u64,
        bytes: LOW,
    };
    shared(&file, &[low, high]).unwrap()
}

fn put(memory: &GuestMemory, at: u64, value: u8) {
    memory.write_slice(&[value; 100], GuestAddress(at)).unwrap();
}

fn byte(memory: &GuestMemory, at: u64) -> u8 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

fn saved(memory: &GuestMemory) -> (File, u64) {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    // What was there before must not shine through.
    file.write_all_at(&[0xee; 0x9000], 0).unwrap();
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let bytes = save(memory, &file, Some(&pagemap)).unwrap();
    (file, bytes)
}

fn map_both(file: &File) -> GuestMemory {
    map(file, &[(0, LOW), (HIGH, LOW)]).unwrap()
}

#[test]
fn only_pages_with_content_are_written() {
    let memory = new();
    put(&memory, 0x1000, 1);
    put(&memory, 0x2ff0, 2);
    put(&memory, HIGH + 0x10_0000, 3);
    // Touched, and nothing in it.
    put(&memory, 0x8_0000, 0);
    let (file, bytes) = saved(&memory);
    // 0x2ff0 lies across a border of pages.
    assert_eq!(bytes, 4 * PAGE as u64);
    let data = file.metadata().unwrap();
    assert_eq!(data.len(), 2 * LOW as u64);
    assert!(data.blocks() * 512 <= 8 * PAGE as u64, "{}", data.blocks());
}

#[test]
fn loaded_and_mapped_memory_is_what_was_saved() {
    let memory = new();
    put(&memory, 0x1000, 1);
    put(&memory, HIGH + 0x3000, 3);
    let (file, bytes) = saved(&memory);
    let loaded = new();
    assert_eq!(load(&loaded, &file).unwrap(), bytes);
    for memory in [loaded, map_both(&file)] {
        let seen = [0, 0x1000, 0x2000, HIGH + 0x3000].map(|at| byte(&memory, at));
        assert_eq!(seen, [0, 1, 0, 3]);
    }
}

#[test]
fn mapped_memory_leaves_the_file_alone_and_is_saved_with_its_changes() {
    let memory = new();
    put(&memory, 0x1000, 1);
    put(&memory, 0x5000, 5);
    put(&memory, 0x9000, 9);
    let (first, _) = saved(&memory);
    let mapped = map_both(&first);
    put(&mapped, 0x1000, 11);
    put(&mapped, HIGH, 12);
    // Zeroes in place of something.
    mapped.write_slice(&ZEROES, GuestAddress(0x9000)).unwrap();
    assert_eq!(byte(&map_both(&first), 0x1000), 1);

    let (second, _) = saved(&mapped);
    let again = map_both(&second);
    let seen = [0x1000, 0x5000, 0x9000, HIGH].map(|at| byte(&again, at));
    assert_eq!(seen, [11, 5, 0, 12]);
    let refused = save(&mapped, &tempfile::tempfile().unwrap(), None);
    assert!(matches!(refused, Err(SavedError::NoPagemap)));
}

#[test]
fn mapped_memory_is_not_offered_to_other_processes() {
    let (file, _) = saved(&new());
    assert!(
        map_both(&file)
            .iter()
            .all(|region| file_of(region).is_none())
    );
}

#[test]
fn a_short_file_is_refused() {
    let (file, _) = saved(&new());
    file.set_len(2 * LOW as u64 - 1).unwrap();
    assert!(matches!(load(&new(), &file), Err(SavedError::Short { .. })));
    let mapped = map(&file, &[(0, LOW), (HIGH, LOW)]);
    assert!(matches!(mapped, Err(SavedError::Short { .. })));
}
