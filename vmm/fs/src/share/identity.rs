//! Which inode it is that a name or a descriptor leads to.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};

/// What makes an inode the same inode: where it is mounted, device, number, and when it was made
/// (numbers are used again, also those of devices and mounts).
///
/// A file or directory on overlayfs keeps all of that when it is copied up, before its first change, but for
/// the time: that becomes the copy's. It is no part of an identity there. A guest that is told of another
/// inode drops what it knows of the old one, and with it everything that it has mounted on or below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub mount: u64,
    device: (u32, u32),
    number: u64,
    birth: Option<(i64, u32)>,
    pub kind: u16,
}

impl Identity {
    /// Of what was reached from `directory`: what lies on the same mount lies on the same file system, which
    /// is asked, with a request to its server if it has one, only where a mount begins.
    pub fn of(reached: &Reached, directory: Option<&Self>) -> Self {
        let keeps_birth = match directory {
            Some(directory) if directory.mount == reached.stat.stx_mnt_id => {
                directory.birth.is_some()
            }
            _ => !is_overlay(&reached.fd),
        };
        Self::from(&reached.stat, keeps_birth)
    }

    fn from(stat: &Statx, keeps_birth: bool) -> Self {
        let birth = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        Self {
            mount: stat.stx_mnt_id,
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            number: stat.stx_ino,
            birth: keeps_birth.then_some(birth),
            kind: stat.stx_mode & (libc::S_IFMT as u16),
        }
    }

    /// Whether statx(2) said this of the same inode.
    pub fn is_of(&self, stat: &Statx) -> bool {
        *self == Self::from(stat, self.birth.is_some())
    }
}

/// A file that was just reached: a descriptor that names it, and what statx(2) said.
pub(super) struct Reached {
    pub fd: OwnedFd,
    pub stat: Statx,
}

impl Reached {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let stat = stat(&fd)?;
        Ok(Self { fd, stat })
    }

    /// The entry of a directory, links not followed.
    pub fn by_name(directory: impl AsFd, name: &CStr) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Self::new(rustix::fs::openat(directory, name, flags, Mode::empty())?)
    }
}

fn is_overlay(fd: impl AsFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|system| system.f_type == libc::OVERLAYFS_SUPER_MAGIC)
}

/// What is asked of statx(2): attributes, and what makes an inode the same.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID);

/// statx(2) of what a descriptor names.
pub(super) fn stat(fd: impl AsFd) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::statx(fd, c"", flags, WANTED)?)
}

/// statx(2) of a directory's entry, links not followed.
pub(super) fn stat_by_name(directory: impl AsFd, name: &CStr) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(directory, name, flags, WANTED)?)
}
