//! Opening, reading, writing, allocating.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use fuse_backend_rs::{
    abi::fuse_abi::WRITE_KILL_PRIV,
    api::filesystem::{ZeroCopyReader, ZeroCopyWriter},
    file_buf::FileVolatileSlice,
    file_traits::FileReadWriteVolatile,
};
use isopod_memory::GuestSlice;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, SeekFrom};

use super::{
    Share,
    attributes::descriptor_name,
    handle::{Handle, Opened},
    identity,
    inode::Inode,
    thread::ClearingSetId,
};

/// One copy_file_range(2) moves at most this much, so that its queue is not kept for long. Callers
/// go on with the rest.
const MAX_COPY: usize = 64 << 20;

/// Flags of open(2) that reach the host. Not among them: O_CREAT and O_EXCL (decided elsewhere),
/// O_PATH and O_TMPFILE (would open something else than a file's data), O_DIRECT (the guest's cache
/// is bypassed all the same; the host's buffers would need alignment), O_NOFOLLOW (meaningless on the
/// way through /proc), O_NOCTTY, O_ASYNC.
pub(super) fn allowed_flags(asked: u32) -> OFlags {
    let allowed = OFlags::ACCMODE
        | OFlags::APPEND
        | OFlags::TRUNC
        | OFlags::NONBLOCK
        | OFlags::SYNC
        | OFlags::DSYNC
        | OFlags::NOATIME;
    (OFlags::from_bits_retain(asked) & allowed) | OFlags::CLOEXEC | OFlags::LARGEFILE
}

/// File systems that have nothing to say when a descriptor is closed: what they could not write, they
/// tell at write(2) or fsync(2). Others, like NFS, tell it at close(2).
const SILENT_AT_CLOSE: [i64; 6] = [
    libc::EXT4_SUPER_MAGIC,
    libc::XFS_SUPER_MAGIC,
    libc::BTRFS_SUPER_MAGIC,
    libc::F2FS_SUPER_MAGIC,
    libc::TMPFS_MAGIC,
    libc::OVERLAYFS_SUPER_MAGIC,
];

/// FOPEN_KEEP_CACHE: what the guest has cached of the content is still right.
const KEEP_CACHE: u32 = 1 << 1;

/// FOPEN_NOFLUSH (include/uapi/linux/fuse.h): no FLUSH request at close, which saves a round trip.
const NO_FLUSH: u32 = 1 << 5;

/// A file was opened for the guest.
pub(super) struct OpenedFile {
    pub handle: u64,
    /// FOPEN_* (`struct fuse_open_out`).
    pub open_flags: u32,
}

impl Share {
    /// Opens a file. The answer's flags tell whether the guest's cache of its content is still right.
    pub(super) fn open_file(
        &self,
        node: u64,
        asked: u32,
        clear_set_id: bool,
    ) -> io::Result<OpenedFile> {
        let inode = self.inodes.get(node)?;
        let flags = allowed_flags(asked);
        let clearing = clear_set_id && flags.contains(OFlags::TRUNC);
        let _clearing = clearing.then(ClearingSetId::begin).transpose()?;
        if inode.kind() != FileType::RegularFile {
            // The guest's kernel opens devices, fifos and sockets itself.
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let fd = self.open_again(&inode, flags)?;
        let unchanged = inode.opened_unchanged(&identity::stat(&fd)?);
        let mut opened = self.opened(node, fd, flags);
        if unchanged {
            opened.open_flags |= KEEP_CACHE;
        }
        Ok(opened)
    }

    /// Remembers an open file.
    pub(super) fn opened(&self, node: u64, fd: OwnedFd, flags: OFlags) -> OpenedFile {
        let reads_only = flags & OFlags::ACCMODE == OFlags::RDONLY;
        let silent = reads_only
            || rustix::fs::fstatfs(&fd).is_ok_and(|fs| SILENT_AT_CLOSE.contains(&fs.f_type));
        let opened = Opened::File {
            file: File::from(fd),
            flags: AtomicU32::new(flags.bits()),
        };
        OpenedFile {
            handle: self.handles.insert(Handle { node, opened }),
            open_flags: if silent { NO_FLUSH } else { 0 },
        }
    }

    /// Opens what a descriptor only names; regular files and directories only.
    pub(super) fn open_again(&self, inode: &Arc<Inode>, flags: OFlags) -> io::Result<OwnedFd> {
        match inode.kind() {
            FileType::RegularFile | FileType::Directory => {}
            _ => return Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
        let fd = self.inodes.fd(inode)?;
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(
            &self.proc,
            descriptor_name(&fd),
            flags,
            Mode::empty(),
        )?)
    }

    pub(super) fn read_file(
        &self,
        node: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
    ) -> io::Result<usize> {
        let handle = self.handles.get(handle, node)?;
        to.write_from(&mut At(handle.file()?.as_fd()), size as usize, offset)
    }

    #[expect(clippy::too_many_arguments, reason = "the parameters of the request")]
    pub(super) fn write_file(
        &self,
        node: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        flags: u32,
        write_flags: u32,
    ) -> io::Result<usize> {
        let handle = self.handles.get(handle, node)?;
        let file = handle.file()?;
        follow_append(&handle, file, flags)?;
        let clearing = write_flags & WRITE_KILL_PRIV != 0;
        let _clearing = clearing.then(ClearingSetId::begin).transpose()?;
        from.read_to(&mut At(file.as_fd()), size as usize, offset)
    }

    pub(super) fn seek_file(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let handle = self.handles.get(handle, node)?;
        // The position that this sets is used by nobody: all reading is at an offset.
        let to = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        Ok(rustix::fs::seek(handle.file()?, to)?)
    }

    pub(super) fn allocate(
        &self,
        node: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, node)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        Ok(rustix::fs::fallocate(handle.file()?, mode, offset, length)?)
    }

    pub(super) fn sync_file(&self, node: u64, handle: u64, data_only: bool) -> io::Result<()> {
        let handle = self.handles.get(handle, node)?;
        let file = handle.file()?;
        Ok(if data_only {
            rustix::fs::fdatasync(file)
        } else {
            rustix::fs::fsync(file)
        }?)
    }

    /// Closing one of several descriptors of a file: some file systems report write errors then.
    pub(super) fn flush_file(&self, node: u64, handle: u64) -> io::Result<()> {
        let handle = self.handles.get(handle, node)?;
        drop(handle.file()?.try_clone()?);
        Ok(())
    }

    /// copy_file_range(2); returns the bytes copied.
    pub(super) fn copy(
        &self,
        (node_in, handle_in, mut offset_in): (u64, u64, u64),
        (node_out, handle_out, mut offset_out): (u64, u64, u64),
        length: u64,
    ) -> io::Result<u32> {
        let from = self.handles.get(handle_in, node_in)?;
        let to = self.handles.get(handle_out, node_out)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(MAX_COPY);
        let copied = rustix::fs::copy_file_range(
            from.file()?,
            Some(&mut offset_in),
            to.file()?,
            Some(&mut offset_out),
            length,
        )?;
        u32::try_from(copied).map_err(|_| io::Error::from_raw_os_error(libc::EIO))
    }

    /// syncfs(2) of the file system that an inode lies on.
    pub(super) fn sync_file_system(&self, node: u64) -> io::Result<()> {
        let inode = self.inodes.get(node)?;
        let fd = self.open_again(&inode, OFlags::RDONLY | OFlags::NONBLOCK)?;
        Ok(rustix::fs::syncfs(fd)?)
    }
}

/// The guest can turn O_APPEND on and off after opening (fcntl(2) F_SETFL). The host's file must
/// follow: with it, a write ignores its offset.
fn follow_append(handle: &Handle, file: &File, flags: u32) -> io::Result<()> {
    let Opened::File { flags: has, .. } = &handle.opened else {
        return Ok(());
    };
    let wanted = OFlags::from_bits_retain(flags) & OFlags::APPEND;
    let now = OFlags::from_bits_retain(has.load(Ordering::Relaxed));
    if now & OFlags::APPEND == wanted {
        return Ok(());
    }
    let next = (now - OFlags::APPEND) | wanted;
    let status = next & (OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOATIME);
    rustix::fs::fcntl_setfl(file, status)?;
    has.store(next.bits(), Ordering::Relaxed);
    Ok(())
}

/// A file, read and written at offsets only.
struct At<'f>(BorrowedFd<'f>);

fn pieces<'a>(slices: &[FileVolatileSlice<'a>]) -> Vec<GuestSlice<'a>> {
    slices
        .iter()
        .map(FileVolatileSlice::as_volatile_slice)
        .collect()
}

impl FileReadWriteVolatile for At<'_> {
    fn read_volatile(&mut self, _slice: FileVolatileSlice) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_volatile(&mut self, _slice: FileVolatileSlice) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn read_at_volatile(&mut self, slice: FileVolatileSlice, offset: u64) -> io::Result<usize> {
        self.read_vectored_at_volatile(&[slice], offset)
    }

    fn write_at_volatile(&mut self, slice: FileVolatileSlice, offset: u64) -> io::Result<usize> {
        self.write_vectored_at_volatile(&[slice], offset)
    }

    fn read_vectored_at_volatile(
        &mut self,
        slices: &[FileVolatileSlice],
        offset: u64,
    ) -> io::Result<usize> {
        isopod_memory::file::read_at(self.0, &pieces(slices), offset)
    }

    fn write_vectored_at_volatile(
        &mut self,
        slices: &[FileVolatileSlice],
        offset: u64,
    ) -> io::Result<usize> {
        isopod_memory::file::write_at(self.0, &pieces(slices), offset)
    }
}
