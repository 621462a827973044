//! A guest's memory as a file that can be kept: all regions one after the other, in the order of their
//! addresses, with holes where the guest never wrote, or wrote zeroes.
//!
//! ```text
//!   memfd ──save──> file ──map──> private memory: pages come when they are touched, and are the
//!                     │           guest's own from its first write on; the file stays as it is
//!                     └──load──> memfd: all of it at once; other processes can map it too
//! ```
//!
//! Mapping is for machines whose devices are all in the monitor. A private page is nobody else's: a
//! process that serves a device (vhost-user) would see the file where the guest has written. Nor can
//! such a process be served page by page (userfaultfd is told of one process's touches, not of
//! another's): for these machines memory is loaded.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

use rustix::{fs::SeekFrom, io::Errno};
use vm_memory::{Bytes, FileOffset, MemoryRegionAddress, mmap::MmapRegionBuilder};

use crate::{
    AddressSpace, DirtyBitmap, GuestAddress, GuestMemory, GuestMemoryRegion, GuestRegion, PAGE,
    file_of,
};

/// Read and judged at once.
const CHUNK: usize = 64 * PAGE;
/// A page of zeroes, to compare with.
static ZEROES: [u8; PAGE] = [0; PAGE];

/// Memory could not be saved or brought back.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// A step on one of the files.
    #[error("{act}: {source}")]
    File {
        /// What was tried.
        act: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file that is too short for the machine.
    #[error("the file has {found} bytes, the machine {needed} of memory")]
    Short {
        /// Its length.
        found: u64,
        /// The machine's.
        needed: u64,
    },
    /// Which of its pages a guest has written only the kernel knows.
    #[error("memory that is mapped from a file can be saved only with /proc/self/pagemap")]
    NoPagemap,
    /// Guest memory that is not where it was said to be.
    #[error("find guest memory at {0:#x}")]
    Memory(u64),
    /// mmap(2), or ranges that overlap.
    #[error("map the file: {0}")]
    Map(String),
}

fn failed(act: &'static str) -> impl Fn(io::Error) -> SavedError {
    move |source| SavedError::File { act, source }
}

/// Bytes of all regions.
#[must_use]
pub fn length(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Writes memory to a file from its beginning; whatever the file had is gone. The guest must stand
/// still. `pagemap` is this process's, for memory that was [`map`]ped. Returns the bytes of data.
///
/// # Errors
/// See [`SavedError`].
pub fn save(memory: &GuestMemory, to: &File, pagemap: Option<&File>) -> Result<u64, SavedError> {
    let act = "empty the file";
    to.set_len(0).map_err(failed(act))?;
    to.set_len(length(memory)).map_err(failed(act))?;
    let (mut at, mut written) = (0, 0);
    for region in memory.iter() {
        let mut target = Target { to, at, written: 0 };
        if let Some((file, part)) = file_of(region) {
            target.copy_extents(file, part.offset, region.len())?;
        } else if is_mapped(region) {
            let pagemap = pagemap.ok_or(SavedError::NoPagemap)?;
            let part = region.file_offset().ok_or(SavedError::NoPagemap)?;
            target.copy_extents(part.file().as_fd(), part.start(), region.len())?;
            target.copy_changed(region, pagemap)?;
        } else {
            target.copy(region, 0, region.len(), Zeroes::Skipped)?;
        }
        at += region.len();
        written += target.written;
    }
    Ok(written)
}

/// Fills new memory from a file that [`save`] wrote. Returns the bytes of data.
///
/// # Errors
/// See [`SavedError`].
pub fn load(memory: &GuestMemory, from: &File) -> Result<u64, SavedError> {
    check_length(from, length(memory))?;
    let (mut at, mut read) = (0, 0);
    for region in memory.iter() {
        let end = at + region.len();
        let mut next = at;
        while let Some((start, stop)) = extent(from.as_fd(), next, end)? {
            let address = GuestAddress(region.start_addr().0 + (start - at));
            let lost = |_| SavedError::Memory(address.0);
            let bytes = usize::try_from(stop - start).map_err(|_| SavedError::Memory(address.0))?;
            let piece = memory.get_slice(address, bytes).map_err(lost)?;
            let got = crate::file::read_at(from.as_fd(), &[piece], start);
            if got.map_err(failed("read the file"))? != bytes {
                return Err(failed("read the file")(io::ErrorKind::UnexpectedEof.into()));
            }
            read += stop - start;
            next = stop;
        }
        at = end;
    }
    Ok(read)
}

/// Memory at the given addresses and lengths that begins as a file that [`save`] wrote, and of which
/// nothing is read before it is touched. Nobody may change the file for as long as the memory exists: a
/// guest would see it, and a file that shrinks ends this process with SIGBUS.
///
/// # Errors
/// See [`SavedError`].
pub fn map(from: &File, regions: &[(u64, usize)]) -> Result<GuestMemory, SavedError> {
    let needed = regions.iter().map(|(_, bytes)| *bytes as u64).sum();
    check_length(from, needed)?;
    let refused = |error: &dyn std::fmt::Display| SavedError::Map(error.to_string());
    let mut at = 0;
    let mut mapped = Vec::with_capacity(regions.len());
    for (start, bytes) in regions {
        let file = from.try_clone().map_err(failed("duplicate the file"))?;
        let region = MmapRegionBuilder::<DirtyBitmap>::new(*bytes)
            .with_file_offset(FileOffset::new(file, at))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .build()
            .map_err(|e| refused(&e))?;
        let region = GuestRegion::new(region, GuestAddress(*start));
        mapped.push(region.ok_or_else(|| refused(&"an address that is none"))?);
        at += *bytes as u64;
    }
    GuestMemory::from_regions(mapped).map_err(|e| refused(&e))
}

/// Whether a region came from [`map`].
pub(crate) fn is_mapped(region: &GuestRegion) -> bool {
    region.file_offset().is_some() && region.flags() & libc::MAP_PRIVATE != 0
}

fn check_length(file: &File, needed: u64) -> Result<(), SavedError> {
    let found = file.metadata().map_err(failed("look at the file"))?.len();
    if found < needed {
        return Err(SavedError::Short { found, needed });
    }
    Ok(())
}

/// The next part of a file that is no hole, from `from` on and up to `end`.
fn extent(file: BorrowedFd<'_>, from: u64, end: u64) -> Result<Option<(u64, u64)>, SavedError> {
    let act = "look for the file's holes";
    if from >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) if start < end => start,
        // Nothing but a hole up to the end of the file.
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(failed(act)(error.into())),
    };
    let stop = rustix::fs::seek(file, SeekFrom::Hole(start));
    let stop = stop.map_err(|error| failed(act)(error.into()))?.min(end);
    Ok((start < stop).then_some((start, stop)))
}

/// What becomes of a page without content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeroes {
    /// A hole.
    Skipped,
    /// Written: there may be something else in its place.
    Written,
}

/// One region's place in the file.
struct Target<'a> {
    to: &'a File,
    at: u64,
    written: u64,
}

impl Target<'_> {
    /// What a file has from `offset` on, without its holes.
    fn copy_extents(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
    ) -> Result<(), SavedError> {
        let end = offset + bytes;
        let mut next = offset;
        let mut chunk = vec![0; CHUNK];
        while let Some((start, stop)) = extent(file, next, end)? {
            // All of it before the next is looked for: to find an end, the kernel passes over every page.
            next = start;
            while next < stop {
                let length = chunk.len().min((stop - next) as usize);
                let piece = &mut chunk[..length];
                let got = rustix::io::pread(file, &mut *piece, next)
                    .map_err(|error| failed("read guest memory")(error.into()))?;
                if got == 0 {
                    return Err(failed("read guest memory")(
                        io::ErrorKind::UnexpectedEof.into(),
                    ));
                }
                self.put(next - offset, &piece[..got], Zeroes::Skipped)?;
                next += got as u64;
            }
        }
        Ok(())
    }

    /// Pages that are no longer the file's.
    fn copy_changed(&mut self, region: &GuestRegion, pagemap: &File) -> Result<(), SavedError> {
        const ENTRIES: usize = 512;
        let host = region.get_host_address(MemoryRegionAddress(0));
        let host = host.map_err(|_| SavedError::Memory(region.start_addr().0))?;
        let first = (host as u64) / PAGE as u64;
        let pages = region.len() / PAGE as u64;
        let mut entries = [0; ENTRIES * 8];
        let mut page = 0;
        while page < pages {
            let count = ENTRIES.min((pages - page) as usize);
            let bytes = &mut entries[..count * 8];
            pagemap
                .read_exact_at(bytes, (first + page) * 8)
                .map_err(failed("read /proc/self/pagemap"))?;
            let changed = bytes.chunks_exact(8).map(|entry| {
                let entry = <[u8; 8]>::try_from(entry).map(u64::from_le_bytes);
                is_private(entry.unwrap_or(0))
            });
            for (at, changed) in (page..).zip(changed) {
                if changed {
                    self.copy(region, at * PAGE as u64, PAGE as u64, Zeroes::Written)?;
                }
            }
            page += count as u64;
        }
        Ok(())
    }

    /// A part of the region as it is mapped here.
    fn copy(
        &mut self,
        region: &GuestRegion,
        from: u64,
        bytes: u64,
        zeroes: Zeroes,
    ) -> Result<(), SavedError> {
        let mut chunk = vec![0; CHUNK.min(bytes as usize)];
        let mut done = 0;
        while done < bytes {
            let length = chunk.len().min((bytes - done) as usize);
            let piece = &mut chunk[..length];
            let at = from + done;
            region
                .read_slice(piece, MemoryRegionAddress(at))
                .map_err(|_| SavedError::Memory(region.start_addr().0 + at))?;
            self.put(at, piece, zeroes)?;
            done += length as u64;
        }
        Ok(())
    }

    /// Writes runs of pages that have content.
    fn put(&mut self, at: u64, bytes: &[u8], zeroes: Zeroes) -> Result<(), SavedError> {
        let empty = |page: &[u8]| zeroes == Zeroes::Skipped && page == &ZEROES[..page.len()];
        let mut run = 0..0;
        for page in bytes.chunks(PAGE) {
            if empty(page) {
                self.put_run(at, bytes, run.clone())?;
                run = run.end + page.len()..run.end + page.len();
            } else {
                run.end += page.len();
            }
        }
        self.put_run(at, bytes, run)
    }

    fn put_run(
        &mut self,
        at: u64,
        bytes: &[u8],
        run: std::ops::Range<usize>,
    ) -> Result<(), SavedError> {
        let offset = self.at + at + run.start as u64;
        let Some(run) = bytes.get(run).filter(|run| !run.is_empty()) else {
            return Ok(());
        };
        self.written += run.len() as u64;
        self.to
            .write_all_at(run, offset)
            .map_err(failed("write the file"))
    }
}

/// Of an entry of pagemap (kernel, Documentation/admin-guide/mm/pagemap.rst): a page that is present or
/// swapped, and no file's.
fn is_private(entry: u64) -> bool {
    const FILE: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    entry & (PRESENT | SWAPPED) != 0 && entry & FILE == 0
}

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;
