//! System calls that no safe crate offers.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Flags that mount_setattr(2) sets, for a mount and all mounts beneath it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountAttributes(u64);

impl MountAttributes {
    /// A directory that is served to a guest: written, never executed or opened as a device here.
    pub(crate) const SERVED: Self =
        Self(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC);
    /// The tmpfs itself.
    pub(crate) const EMPTY_ROOT: Self = Self(
        libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
    );
    /// Programs and data of the host.
    pub(crate) const READ_ONLY: Self =
        Self(libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV);
    /// A device node; a read-only mount lets it be written to all the same.
    pub(crate) const DEVICE: Self =
        Self(libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC);
}

/// mount_setattr(2) on one mount (not on those stacked beneath it).
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes,
) -> io::Result<()> {
    let argument = libc::mount_attr {
        attr_set: attributes.0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a constant C string, `argument` lives through the call and its size is
    // given; the kernel writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const argument,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// close_range(2), both ends included.
///
/// # Safety
/// No value of this process may own a descriptor in the range.
pub(crate) unsafe fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: no memory is involved; the caller vouches for the descriptors.
    match unsafe { libc::close_range(first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The flags of a descriptor number (fcntl(2) F_GETFD); fails for a number that is not open.
pub(crate) fn descriptor_flags(fd: RawFd) -> io::Result<libc::c_int> {
    // SAFETY: reads a flag of a number; no memory is involved and nothing is changed.
    match unsafe { libc::fcntl(fd, libc::F_GETFD) } {
        -1 => Err(io::Error::last_os_error()),
        flags => Ok(flags),
    }
}

/// Takes possession of a number.
///
/// # Safety
/// `fd` is open and no other value of this process owns it.
pub(crate) unsafe fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise is the same.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// prctl(2) with one integer argument.
fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: every option passed here (this function is private to the module) takes integers only.
    match unsafe { libc::prctl(option, argument, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// capabilities(7), "The securebits flags": root is a number like any other, for good, and changes
/// of the user id leave the capability sets alone.
pub(crate) fn lock_securebits() -> io::Result<()> {
    let bits = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong)
}

/// No execve(2) from now on may add privileges.
pub(crate) fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// No core dump, and no ptrace(2) by processes of the same user.
pub(crate) fn set_undumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// SIGKILL when the thread that made this process ends.
pub(crate) fn set_death_signal() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
}
