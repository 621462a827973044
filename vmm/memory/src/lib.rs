//! Guest memory: the one place that names `vm-memory`'s types.
//!
//! Place in the flow: everything that touches a guest's memory (`virtio`, `devices`, `fs`, later the
//! monitor) gets its types from here, so that another version or another bitmap is a change of one
//! file. Imports no sibling.
//!
//! The memory is shared with a guest that may change any byte at any time. It is therefore never
//! seen as a Rust slice: bytes are copied out once and judged after that, or moved between the
//! guest and a socket or file by the kernel (see [`socket`], [`file`]).

pub mod file;
mod give_back;
pub mod ring;
pub mod saved;
pub mod socket;
pub mod tap;

pub use give_back::{PAGE, give_back, give_back_range};

use std::os::fd::{AsFd, BorrowedFd};

/// The trait behind [`GuestMemory`]: what generic code of other crates is written against.
pub use vm_memory::GuestMemory as AddressSpace;
pub use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryError,
    GuestMemoryLoadGuard, GuestMemoryRegion, Le16, Le32, Le64, ReadVolatile, VolatileMemory,
    VolatileMemoryError, WriteVolatile,
};

/// How dirty pages are tracked: not yet at all. With `()` a vhost-user back end must not offer
/// `VHOST_USER_PROTOCOL_F_LOG_SHMFD` (vhost-user-backend panics when the front end uses it).
pub type DirtyBitmap = ();

/// A guest's memory: mapped regions at guest-physical addresses.
pub type GuestMemory = vm_memory::GuestMemoryMmap<DirtyBitmap>;

/// One region of a [`GuestMemory`].
pub type GuestRegion = vm_memory::GuestRegionMmap<DirtyBitmap>;

/// A guest's memory whose regions the front end may replace while devices run: take a snapshot with
/// [`GuestAddressSpace::memory`] for one round of work, never for longer.
pub type GuestMemoryHandle = GuestMemoryAtomic<GuestMemory>;

/// A piece of guest memory that is mapped here.
pub type GuestSlice<'a> = vm_memory::VolatileSlice<'a, DirtyBitmap>;

/// Anonymous memory at the given guest-physical addresses, each with its length in bytes: for tests
/// and for tools without a guest.
///
/// # Errors
/// When the regions overlap or the kernel refuses the mapping.
pub fn anonymous(regions: &[(u64, usize)]) -> Result<GuestMemory, AnonymousMemoryError> {
    let regions: Vec<_> = regions
        .iter()
        .map(|(start, bytes)| (GuestAddress(*start), *bytes))
        .collect();
    GuestMemory::from_ranges(&regions).map_err(|e| AnonymousMemoryError(e.to_string()))
}

/// [`anonymous`] memory could not be made: overlapping regions, or the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("map guest memory: {0}")]
pub struct AnonymousMemoryError(String);

/// A part of a file (a memfd) as a region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRegion {
    /// Guest-physical address.
    pub start: u64,
    /// Where in the file it begins.
    pub offset: u64,
    /// Its length.
    pub bytes: usize,
}

/// Memory that other processes can map too, because it is a file's: parts of `file`, shared.
///
/// # Errors
/// When the regions overlap, lie beyond the file's end, or the kernel refuses the mapping.
pub fn shared(
    file: &std::fs::File,
    regions: &[FileRegion],
) -> Result<GuestMemory, SharedMemoryError> {
    let refused = |e: &dyn std::fmt::Display| SharedMemoryError(e.to_string());
    let length = file.metadata().map_err(|e| refused(&e))?.len();
    let mut ranges = Vec::with_capacity(regions.len());
    for region in regions {
        // A mapping beyond the end would be made, and raise SIGBUS when touched.
        let end = region.offset.checked_add(region.bytes as u64);
        if end.is_none_or(|end| end > length) {
            return Err(refused(&"a region beyond the end of the file"));
        }
        let file = file.try_clone().map_err(|e| refused(&e))?;
        let part = vm_memory::FileOffset::new(file, region.offset);
        ranges.push((GuestAddress(region.start), region.bytes, Some(part)));
    }
    GuestMemory::from_ranges_with_files(&ranges).map_err(|e| refused(&e))
}

/// [`shared`] memory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("map guest memory from a file: {0}")]
pub struct SharedMemoryError(String);

/// The same memory without one of its regions.
///
/// # Errors
/// There is no region of exactly that place and length.
pub fn without(
    memory: &GuestMemory,
    start: u64,
    bytes: u64,
) -> Result<GuestMemory, SharedMemoryError> {
    let removed = memory.remove_region(GuestAddress(start), bytes);
    removed
        .map(|(rest, _)| rest)
        .map_err(|e| SharedMemoryError(e.to_string()))
}

/// Where a region of [`shared`] memory is: for another process that is to map it. `None` if it is no
/// file's, or if what is written to it does not reach the file.
pub fn file_of(region: &GuestRegion) -> Option<(BorrowedFd<'_>, FileRegion)> {
    let part = region.file_offset().filter(|_| !saved::is_mapped(region))?;
    let whole = FileRegion {
        start: region.start_addr().0,
        offset: part.start(),
        bytes: usize::try_from(region.len()).ok()?,
    };
    Some((part.file().as_fd(), whole))
}

/// Whether all of `bytes` bytes from `start` are guest memory. An empty range is inside only if its
/// address is.
pub fn contains(memory: &GuestMemory, start: GuestAddress, bytes: u64) -> bool {
    usize::try_from(bytes).is_ok_and(|bytes| memory.check_range(start, bytes.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_inside_only_if_all_of_it_is() {
        let memory = anonymous(&[(0x1000, 0x2000), (0x3000, 0x1000), (0x8000, 0x1000)]).unwrap();
        let inside = |start, bytes| contains(&memory, GuestAddress(start), bytes);
        assert!(inside(0x1000, 0x3000), "adjacent regions count as one");
        assert!(inside(0x8fff, 1));
        assert!(!inside(0x8fff, 2));
        assert!(!inside(0x3fff, 0x5000), "a hole in the middle");
        assert!(!inside(0xfff, 1));
        assert!(!inside(u64::MAX, 2), "the address wraps");
        assert!(!inside(0x1000, u64::MAX));
        assert!(!inside(0x5000, 0));
    }

    #[test]
    fn parts_of_a_file_are_shared_with_whoever_maps_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000).unwrap();
        let low = FileRegion {
            start: 0,
            offset: 0x1000,
            bytes: 0x1000,
        };
        let high = FileRegion {
            start: 1 << 32,
            offset: 0x2000,
            ..low
        };
        let here = shared(&file, &[low, high]).unwrap();
        let parts: Vec<_> = here.iter().filter_map(file_of).collect();
        assert_eq!(parts[1].1, high);
        let again = std::fs::File::from(parts[1].0.try_clone_to_owned().unwrap());
        let there = shared(&again, &[high]).unwrap();
        here.write_obj(7u32, GuestAddress(1 << 32)).unwrap();
        let seen: u32 = there.read_obj(GuestAddress(1 << 32)).unwrap();
        assert_eq!(seen, 7);

        let beyond = FileRegion {
            offset: 0x3000,
            ..low
        };
        assert!(shared(&file, &[beyond]).is_err());
        let memory = anonymous(&[(0, 0x1000)]).unwrap();
        assert!(memory.iter().all(|region| file_of(region).is_none()));
    }

    #[test]
    fn overlapping_regions_are_refused() {
        assert!(anonymous(&[(0x1000, 0x2000), (0x2000, 0x1000)]).is_err());
    }
}
