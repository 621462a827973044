//! mount_setattr(2).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// What to change on a mount: `MOUNT_ATTR_*` bits and one `MS_*` propagation (0: leave).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
}

/// Changes the mount that `mount` is open on, and those below it with `recursive`.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    attr: MountAttr,
    recursive: bool,
) -> io::Result<()> {
    let raw = libc::mount_attr {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: 0,
    };
    set(mount, raw, recursive)
}

/// Maps the ids of files on a detached mount by a user namespace (mount_setattr(2), "ID-mapped mounts").
pub(crate) fn map_ids(
    mount: BorrowedFd<'_>,
    users: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    let raw = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_raw_fd()).unwrap_or(u64::MAX),
    };
    set(mount, raw, recursive)
}

fn set(mount: BorrowedFd<'_>, raw: libc::mount_attr, recursive: bool) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty C string, `raw` a valid mount_attr of the size passed, and the kernel
    // only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of_val(&raw),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
