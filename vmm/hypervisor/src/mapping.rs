//! A file in this process's address space, for the guest to see as memory it cannot write.

use std::{fs::File, io, os::fd::AsRawFd, ptr::NonNull};

use crate::HypervisorError;

/// 2 MiB: a slot that begins and ends on such a boundary can be mapped by large pages.
const LARGE_PAGE: u64 = 2 << 20;

/// A whole file, mapped for reading only; unmapped when dropped.
#[derive(Debug)]
pub struct FileMapping {
    address: NonNull<libc::c_void>,
    bytes: usize,
    /// From the end of the file to the end of the mapping there is anonymous memory of zeroes.
    file_bytes: u64,
}

// SAFETY: the mapping is read by KVM only, on behalf of any thread; this type hands out no reference
// to its bytes.
unsafe impl Send for FileMapping {}
// SAFETY: as above.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// Maps `file`. The mapping's length is the file's, rounded up to 2 MiB with pages of zeroes, as
    /// virtio-pmem wants (Linux refuses sections that are not aligned).
    ///
    /// # Errors
    /// An empty file, or mmap(2) failed.
    pub fn new(file: &File) -> Result<Self, HypervisorError> {
        let file_bytes = file
            .metadata()
            .map_err(|source| HypervisorError::MapFile { bytes: 0, source })?
            .len();
        let failed = |source| HypervisorError::MapFile {
            bytes: file_bytes,
            source,
        };
        let rounded = file_bytes
            .checked_next_multiple_of(LARGE_PAGE)
            .filter(|bytes| *bytes > 0)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let length =
            usize::try_from(file_bytes).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                rounded,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let Some(address) = mapped(address) else {
            return Err(failed(io::Error::last_os_error()));
        };
        let mapping = Self {
            address,
            bytes: rounded,
            file_bytes,
        };
        // SAFETY: MAP_FIXED replaces the beginning of the mapping made above, which is `rounded` bytes
        // long and at least `length`, and which nobody else knows yet.
        let over = unsafe {
            libc::mmap(
                address.as_ptr(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                0,
            )
        };
        match mapped(over) {
            Some(_) => Ok(mapping),
            None => Err(failed(io::Error::last_os_error())),
        }
    }

    /// Bytes that the guest sees: a multiple of 2 MiB.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Bytes of the file when it was mapped.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    pub(crate) fn address(&self) -> u64 {
        self.address.as_ptr() as u64
    }
}

fn mapped(address: *mut libc::c_void) -> Option<NonNull<libc::c_void>> {
    NonNull::new(address).filter(|address| address.as_ptr() != libc::MAP_FAILED)
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and exactly so long. A VM that shows it to a guest
        // owns this value and removes the slot first.
        unsafe { libc::munmap(self.address.as_ptr(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_mapping_is_rounded_up_and_reads_as_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let mapping = FileMapping::new(&file).unwrap();
        assert_eq!((mapping.bytes(), mapping.file_bytes()), (2 << 20, 5000));
        // SAFETY: inside the mapping, which nobody writes.
        let byte = |at: usize| unsafe { *(mapping.address() as *const u8).add(at) };
        assert_eq!((byte(4999), byte(5000), byte((2 << 20) - 1)), (7, 0, 0));
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert!(FileMapping::new(&tempfile::tempfile().unwrap()).is_err());
    }
}
