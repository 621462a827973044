//! What is behind a slot: an open file or block device.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, FileTypeExt},
    },
    sync::Arc,
};

use isopod_memory::file;
use isopod_virtio::{Readable, Writable};
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_getfl, fdatasync};

/// The unit of the wire protocol, whatever the disk's own is (virtio 1.2, 5.2).
pub const SECTOR: u64 = 512;

/// A descriptor that is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Neither a regular file nor a block device.
    #[error("the descriptor is neither a regular file nor a block device")]
    Kind,
    /// Opened in a way that does not serve.
    #[error("the descriptor is not open for reading")]
    NotReadable,
    /// A system call on the way.
    #[error("cannot {act}: {source}")]
    System {
        /// What was attempted.
        act: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// What is written where a file system cannot zero by itself.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// An open file or block device. Its length is what it was when it came: a file that grows or
/// shrinks meanwhile is somebody's mistake, and shows as errors of the requests beyond its end.
#[derive(Debug)]
pub struct Disk {
    file: Arc<File>,
    sectors: u64,
    read_only: bool,
}

impl Disk {
    /// Takes a descriptor that somebody with the right to has opened; whether it may be written is
    /// how it was opened. A length that is no multiple of 512 is rounded down.
    ///
    /// # Errors
    /// When it is no disk.
    pub fn new(mut file: File) -> Result<Self, DiskError> {
        let system = |act| move |source| DiskError::System { act, source };
        let kind = file.metadata().map_err(system("look at the disk"))?;
        if !kind.is_file() && !kind.file_type().is_block_device() {
            return Err(DiskError::Kind);
        }
        let flags =
            fcntl_getfl(&file).map_err(|e| system("see how the disk was opened")(e.into()))?;
        let mode = flags & OFlags::RWMODE;
        if mode == OFlags::WRONLY || flags.contains(OFlags::PATH) {
            return Err(DiskError::NotReadable);
        }
        // Serves block devices too, whose metadata has no length.
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(system("learn the disk's length"))?;
        Ok(Self {
            file: Arc::new(file),
            sectors: bytes / SECTOR,
            read_only: mode == OFlags::RDONLY,
        })
    }

    /// Length in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// For transfers that outlive the disk's stay in its slot.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether it was opened only for reading.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The offset in bytes of a range that is wholly on the disk.
    pub(super) fn offset(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = sector.checked_add(bytes.div_ceil(SECTOR))?;
        if end > self.sectors || !bytes.is_multiple_of(SECTOR) {
            return None;
        }
        sector.checked_mul(SECTOR)
    }

    pub(super) fn read(&self, offset: u64, room: &Writable<'_>) -> io::Result<()> {
        let read = file::read_at(self.file.as_fd(), room.slices(), offset)?;
        whole(read, room.left())
    }

    pub(super) fn write(&self, offset: u64, data: &Readable<'_>) -> io::Result<()> {
        let written = file::write_at(self.file.as_fd(), data.slices(), offset)?;
        whole(written, data.left())
    }

    /// What was written before survives a loss of power.
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    /// The range need not be kept; it reads as zeroes afterwards.
    pub(super) fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, hole, offset, bytes)?)
    }

    /// The range reads as zeroes afterwards, and stays allocated unless `may_unmap`.
    pub(super) fn zero(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        if may_unmap && self.discard(offset, bytes).is_ok() {
            return Ok(());
        }
        let keep = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, keep, offset, bytes).is_ok() {
            return Ok(());
        }
        // Not every file system can; the length of one request is bounded.
        let mut done = 0;
        while done < bytes {
            let now = (bytes - done).min(ZEROES.len() as u64);
            let part = ZEROES.get(..now as usize).unwrap_or(&ZEROES);
            self.file.write_all_at(part, offset + done)?;
            done += now;
        }
        Ok(())
    }
}

/// A part is an error: the file is shorter than it was, or the device is failing.
fn whole(moved: usize, wanted: usize) -> io::Result<()> {
    match moved == wanted {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
