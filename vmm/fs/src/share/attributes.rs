//! What stat tells, and changing it.

use std::{io, os::fd::AsFd, sync::Arc};

use fuse_backend_rs::{
    abi::fuse_abi::{ATTR_SUBMOUNT, Attr, stat64},
    api::filesystem::{Context, Entry, FileSystem, SetattrValid},
};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};

use super::{Share, VALIDITY, handle::Handle, identity, inode::Inode, thread::ClearingSetId};

/// statx(2)'s answer in the form that the request parser takes.
pub(super) fn to_stat(stat: &Statx) -> stat64 {
    // The protocol's times are two's complement (fuse_attr, include/uapi/linux/fuse.h).
    let seconds = |s: i64| s.cast_unsigned();
    stat64::from(Attr {
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: seconds(stat.stx_atime.tv_sec),
        mtime: seconds(stat.stx_mtime.tv_sec),
        ctime: seconds(stat.stx_ctime.tv_sec),
        atimensec: stat.stx_atime.tv_nsec,
        mtimensec: stat.stx_mtime.tv_nsec,
        ctimensec: stat.stx_ctime.tv_nsec,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        // The low half of a dev_t is what the protocol carries.
        rdev: libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor) as u32,
        blksize: stat.stx_blksize,
        ..Attr::default()
    })
}

impl Share {
    /// What the guest is told of an entry. `parent` decides whether it is a mount of its own there.
    pub(super) fn entry(&self, inode: &Inode, stat: &Statx, parent: &Inode) -> Entry {
        let directory = inode.kind() == FileType::Directory;
        let submount = self.submounts() && directory && inode.mount() != parent.mount();
        Entry {
            inode: inode.node,
            generation: 0,
            attr: to_stat(stat),
            attr_flags: if submount { ATTR_SUBMOUNT } else { 0 },
            attr_timeout: VALIDITY,
            entry_timeout: VALIDITY,
        }
    }

    /// stat of an inode, by an open file when there is one.
    pub(super) fn stat(&self, node: u64, handle: Option<u64>) -> io::Result<Statx> {
        match handle
            .map(|number| self.handles.get(number, node))
            .transpose()?
        {
            Some(handle) => match handle.file() {
                Ok(file) => identity::stat(file),
                Err(_) => identity::stat(handle.listing()?.descriptor()),
            },
            None => identity::stat(self.inodes.fd(&self.inodes.get(node)?)?),
        }
    }

    pub(super) fn change(
        &self,
        node: u64,
        attr: &stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<Statx> {
        let inode = self.inodes.get(node)?;
        let handle = handle
            .map(|number| self.handles.get(number, node))
            .transpose()?;
        let fd = self.inodes.fd(&inode)?;
        let path = descriptor_name(&fd);
        // The owner first: changing it clears set-id bits that the mode may set.
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let uid = valid
                .contains(SetattrValid::UID)
                .then(|| Uid::from_raw(attr.st_uid));
            let gid = valid
                .contains(SetattrValid::GID)
                .then(|| Gid::from_raw(attr.st_gid));
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&fd, c"", uid, gid, flags)?;
        }
        if valid.contains(SetattrValid::MODE) {
            let mode = Mode::from_raw_mode(attr.st_mode & 0o7777);
            rustix::fs::chmodat(&self.proc, path.as_c_str(), mode, AtFlags::empty())?;
        }
        if valid.contains(SetattrValid::SIZE) {
            self.truncate(&inode, handle.as_deref(), attr.st_size, valid)?;
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let time =
                |set, now, seconds, nanoseconds| match (valid.contains(set), valid.contains(now)) {
                    (false, _) => Timespec {
                        tv_sec: 0,
                        tv_nsec: UTIME_OMIT,
                    },
                    (true, true) => Timespec {
                        tv_sec: 0,
                        tv_nsec: UTIME_NOW,
                    },
                    (true, false) => Timespec {
                        tv_sec: seconds,
                        tv_nsec: nanoseconds,
                    },
                };
            let times = Timestamps {
                last_access: time(
                    SetattrValid::ATIME,
                    SetattrValid::ATIME_NOW,
                    attr.st_atime,
                    attr.st_atime_nsec,
                ),
                last_modification: time(
                    SetattrValid::MTIME,
                    SetattrValid::MTIME_NOW,
                    attr.st_mtime,
                    attr.st_mtime_nsec,
                ),
            };
            rustix::fs::utimensat(&self.proc, path.as_c_str(), &times, AtFlags::empty())?;
        }
        identity::stat(&fd)
    }

    fn truncate(
        &self,
        inode: &Arc<Inode>,
        handle: Option<&Handle>,
        size: i64,
        valid: SetattrValid,
    ) -> io::Result<()> {
        let size = u64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let _clearing = valid
            .contains(SetattrValid::KILL_SUIDGID)
            .then(ClearingSetId::begin)
            .transpose()?;
        match handle.map(Handle::file) {
            Some(file) => rustix::fs::ftruncate(file?, size)?,
            None => {
                let file = self.open_again(inode, OFlags::RDWR | OFlags::NONBLOCK)?;
                rustix::fs::ftruncate(file, size)?;
            }
        }
        Ok(())
    }

    pub(super) fn file_system(&self, node: u64) -> io::Result<libc::statvfs64> {
        let fd = self.inodes.fd(&self.inodes.get(node)?)?;
        let found = rustix::fs::fstatvfs(fd.as_fd())?;
        let mut answer = empty_statvfs()?;
        answer.f_bsize = found.f_bsize;
        answer.f_frsize = found.f_frsize;
        answer.f_blocks = found.f_blocks;
        answer.f_bfree = found.f_bfree;
        answer.f_bavail = found.f_bavail;
        answer.f_files = found.f_files;
        answer.f_ffree = found.f_ffree;
        answer.f_favail = found.f_favail;
        answer.f_namemax = found.f_namemax;
        Ok(answer)
    }
}

/// The name of a descriptor in `/proc/self/fd`.
pub(super) fn descriptor_name(fd: impl AsFd) -> rustix::path::DecInt {
    rustix::path::DecInt::from_fd(fd)
}

/// A `statvfs64` of zeros. The type has private fields; the trait's own default answer is one.
fn empty_statvfs() -> io::Result<libc::statvfs64> {
    struct Nothing;
    impl FileSystem for Nothing {
        type Inode = u64;
        type Handle = u64;
    }
    Nothing.statfs(&Context::default(), 0)
}
