//! Giving guest memory that the guest has given up back to the host.

use std::io;

use crate::GuestSlice;

/// The host's page.
pub const PAGE: usize = 4096;

/// Frees the whole pages of a piece of guest memory: they read as zeroes when the guest touches them
/// again, and belong to the host until then. Parts of pages at either end are left alone; returns the
/// bytes that were freed.
///
/// Of memory that other processes map too, the pages are gone for all of them.
///
/// # Errors
/// madvise(2)'s: pages that are locked, or a file system that cannot free a part.
pub fn give_back(piece: &GuestSlice<'_>) -> io::Result<usize> {
    let guard = piece.ptr_guard_mut();
    let start = guard.as_ptr();
    // From the first page border to the last.
    let skip = start.align_offset(PAGE);
    let Some(whole) = piece.len().checked_sub(skip).map(|left| left - left % PAGE) else {
        return Ok(0);
    };
    if whole == 0 {
        return Ok(0);
    }
    let mut result = Ok(());
    // A private mapping or one without a file refuses the first: there is no backing store to free.
    for advice in [libc::MADV_REMOVE, libc::MADV_DONTNEED] {
        // SAFETY: `skip + whole` is at most the slice's length, so that the range is mapped for as long
        // as the slice lives. Its content may change at any time anyway, as it is a guest's, and no
        // Rust reference to it exists; afterwards it is still mapped and reads as zeroes (or, of a
        // private mapping of a file, as the file), which every holder of a slice must expect.
        let done = unsafe { libc::madvise(start.add(skip).cast(), whole, advice) };
        if done == 0 {
            return Ok(whole);
        }
        result = Err(io::Error::last_os_error());
    }
    result.map(|()| 0)
}

/// As [`give_back`], of a range of guest-physical memory that may span regions.
///
/// # Errors
/// As [`give_back`], or the range is not guest memory.
pub fn give_back_range(memory: &crate::GuestMemory, start: u64, bytes: usize) -> io::Result<usize> {
    use crate::AddressSpace;
    let mut freed = 0;
    for piece in memory.get_slices(crate::GuestAddress(start), bytes) {
        let piece = piece.map_err(|_| io::ErrorKind::InvalidInput)?;
        freed += give_back(&piece)?;
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddressSpace, Bytes, FileRegion, GuestAddress, GuestMemory, anonymous, shared};

    fn fill(memory: &GuestMemory) {
        let bytes = vec![7; 0x4000];
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
    }

    fn byte(memory: &GuestMemory, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn shared_memory() -> (std::fs::File, GuestMemory) {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(0x4000).unwrap();
        let whole = FileRegion {
            start: 0,
            offset: 0,
            bytes: 0x4000,
        };
        let memory = shared(&file, &[whole]).unwrap();
        (file, memory)
    }

    #[test]
    fn whole_pages_are_zeroes_afterwards_and_others_untouched() {
        for memory in [anonymous(&[(0, 0x4000)]).unwrap(), shared_memory().1] {
            fill(&memory);
            let piece = memory.get_slice(GuestAddress(0x800), 0x2c00).unwrap();
            assert_eq!(give_back(&piece).unwrap(), 0x2000);
            let bytes = [0x0fff, 0x1000, 0x2fff, 0x3000].map(|at| byte(&memory, at));
            assert_eq!(bytes, [7, 0, 0, 7]);
        }
    }

    #[test]
    fn what_holds_no_page_is_left_alone() {
        let memory = anonymous(&[(0, 0x4000)]).unwrap();
        fill(&memory);
        for (start, bytes) in [(0x800, 0x400), (0x800, 0x1000), (0x1000, 0xfff), (0, 0)] {
            let piece = memory.get_slice(GuestAddress(start), bytes).unwrap();
            assert_eq!(give_back(&piece).unwrap(), 0);
        }
        assert_eq!(byte(&memory, 0x1000), 7);
    }

    #[test]
    fn a_files_pages_are_freed_for_everybody() {
        use std::os::unix::fs::MetadataExt;
        let (file, memory) = shared_memory();
        fill(&memory);
        let before = file.metadata().unwrap().blocks();
        assert_eq!(give_back_range(&memory, 0, 0x4000).unwrap(), 0x4000);
        assert!(file.metadata().unwrap().blocks() < before);
        assert!(give_back_range(&memory, 0x3000, 0x2000).is_err());
    }
}
