//! The guest's RAM: one memfd, which the processes that serve devices map too. Memory that can be added
//! later is its end.

use std::{fs::File, io};

use isopod_hypervisor::CHUNK;
use isopod_memory::{FileRegion, GuestMemory};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::{Region, layout};

/// RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// Not between the least and the most.
    #[error("{mib} MiB of memory: must be 64 MiB to 512 GiB")]
    Size {
        /// What was asked for.
        mib: u64,
    },
    /// No whole number of what can be added, or too much.
    #[error(
        "{mib} MiB that can be added: must be a multiple of {}, up to 512 GiB",
        CHUNK >> 20
    )]
    Hotplug {
        /// What was asked for.
        mib: u64,
    },
    /// memfd_create(2), ftruncate(2) or a seal.
    #[error("make a file of {bytes} bytes for guest memory: {source}")]
    File {
        /// Its length.
        bytes: u64,
        /// Why not.
        source: io::Error,
    },
    /// mmap(2).
    #[error(transparent)]
    Map(#[from] isopod_memory::SharedMemoryError),
}

/// Where the memory lies that can be added to RAM, if any can.
pub(crate) fn hotplug(mib: u64, hotplug_mib: u64) -> Option<Region> {
    let start = layout::hotplug(mib.saturating_mul(1 << 20));
    let bytes = hotplug_mib.saturating_mul(1 << 20);
    (bytes > 0).then_some(Region { start, bytes })
}

/// Where RAM of a size lies, and behind it what can be added: guest-physical addresses and lengths in
/// bytes.
pub(crate) fn ranges(mib: u64, hotplug_mib: u64) -> Result<Vec<(u64, usize)>, RamError> {
    let bytes = mib
        .checked_mul(1 << 20)
        .filter(|bytes| (layout::MIN_RAM..=layout::MAX_RAM).contains(bytes))
        .ok_or(RamError::Size { mib })?;
    hotplug_mib
        .checked_mul(1 << 20)
        .filter(|bytes| bytes.is_multiple_of(CHUNK) && *bytes <= layout::MAX_RAM)
        .ok_or(RamError::Hotplug { mib: hotplug_mib })?;
    let added = hotplug(mib, hotplug_mib).map(|region| (region.start, region.bytes));
    layout::ram(bytes)
        .into_iter()
        .chain(added)
        .map(|(start, bytes)| {
            Ok((
                start,
                usize::try_from(bytes).map_err(|_| RamError::Size { mib })?,
            ))
        })
        .collect()
}

/// Makes RAM. Pages come when the guest touches them.
pub(crate) fn make(mib: u64, hotplug_mib: u64, huge_pages: bool) -> Result<GuestMemory, RamError> {
    let ranges = ranges(mib, hotplug_mib)?;
    let bytes = ranges.iter().map(|(_, bytes)| *bytes as u64).sum();
    let failed = |e: rustix::io::Errno| RamError::File {
        bytes,
        source: e.into(),
    };
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if huge_pages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let file = rustix::fs::memfd_create("guest-memory", flags).map_err(failed)?;
    rustix::fs::ftruncate(&file, bytes).map_err(failed)?;
    // Who shares the file cannot pull it from under the guest, or from under this process.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(failed)?;

    let mut offset = 0;
    let regions = ranges.into_iter().map(|(start, bytes)| {
        let region = FileRegion {
            start,
            offset,
            bytes,
        };
        offset += bytes as u64;
        region
    });
    let regions: Vec<_> = regions.collect();
    Ok(isopod_memory::shared(&File::from(file), &regions)?)
}

#[cfg(test)]
mod tests {
    use isopod_memory::{AddressSpace, Bytes, GuestAddress};

    use super::*;

    #[test]
    fn ram_is_around_the_hole() {
        let memory = make(4 << 10, 0, false).unwrap();
        for (address, there) in [
            (0, true),
            ((3 << 30) - 8, true),
            (3 << 30, false),
            (4 << 30, true),
            ((5 << 30) - 8, true),
            (5 << 30, false),
        ] {
            let written = memory.write_obj(1u64, GuestAddress(address));
            assert_eq!(written.is_ok(), there, "{address:#x}");
        }
        assert!(
            memory
                .iter()
                .all(|region| isopod_memory::file_of(region).is_some())
        );
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for mib in [0, 63, (512 << 10) + 1, u64::MAX] {
            assert!(matches!(make(mib, 0, false), Err(RamError::Size { .. })));
        }
        for mib in [1, 127, (512 << 10) + 128, u64::MAX] {
            assert!(matches!(
                make(64, mib, false),
                Err(RamError::Hotplug { .. })
            ));
        }
    }

    #[test]
    fn what_can_be_added_lies_behind_ram() {
        let region = hotplug(64, 256).unwrap();
        assert_eq!((region.start, region.bytes), (4 << 30, 256 << 20));
        assert_eq!(hotplug(64, 0), None);
        let all = make(64, 256, false).unwrap();
        let last = GuestAddress(region.start + region.bytes - 8);
        all.write_obj(1u64, last).unwrap();
        let boot = isopod_memory::without(&all, region.start, region.bytes).unwrap();
        assert!(boot.write_obj(1u64, last).is_err());
        // Both are the same memory.
        all.write_obj(5u64, GuestAddress(0x1000)).unwrap();
        let seen: u64 = boot.read_obj(GuestAddress(0x1000)).unwrap();
        assert_eq!(seen, 5);
    }
}
