//! Descriptors that the parent passed by number.

use std::{
    collections::BTreeSet,
    os::fd::{OwnedFd, RawFd},
    sync::{Mutex, PoisonError},
};

use crate::{Error, sys};

static CLAIMED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes possession of an inherited descriptor, once, and marks it close-on-exec.
///
/// What a process opens itself is close-on-exec from birth in Rust, what survived execve(2) cannot
/// be: so a descriptor of the process's own is never handed out a second time.
///
/// # Errors
/// A number that is not open, not inherited, a standard stream, or claimed before.
pub fn claim(fd: RawFd) -> Result<OwnedFd, Error> {
    if fd <= libc::STDERR_FILENO {
        return Err(Error::NotForClaiming(fd));
    }
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    if claimed.contains(&fd) {
        return Err(Error::ClaimedTwice(fd));
    }
    let flags = sys::descriptor_flags(fd).map_err(|source| Error::NotInherited { fd, source })?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(Error::NotForClaiming(fd));
    }
    claimed.insert(fd);
    // SAFETY: the number is open, was not opened by this process (no close-on-exec flag) and was not
    // handed out before (the set, under its lock).
    let owned = unsafe { sys::own(fd) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC).map_err(|e| {
        Error::NotInherited {
            fd,
            source: e.into(),
        }
    })?;
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    fn inheritable() -> RawFd {
        let (read, _write) = std::io::pipe().unwrap();
        rustix::io::fcntl_setfd(&read, rustix::io::FdFlags::empty()).unwrap();
        read.into_raw_fd()
    }

    /// One test: the set of claimed numbers is the process's, and numbers are used again.
    #[test]
    fn inherited_descriptors_are_claimed_once_and_others_never() {
        let (read, _write) = std::io::pipe().unwrap();
        assert!(matches!(
            claim(read.as_raw_fd()),
            Err(Error::NotForClaiming(_))
        ));
        assert!(matches!(claim(1), Err(Error::NotForClaiming(1))));
        assert!(matches!(claim(-1), Err(Error::NotForClaiming(-1))));
        assert!(matches!(
            claim(999_999),
            Err(Error::NotInherited { fd: 999_999, .. })
        ));

        let fd = inheritable();
        let owned = claim(fd).unwrap();
        let flags = rustix::io::fcntl_getfd(&owned).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert!(matches!(claim(fd), Err(Error::ClaimedTwice(n)) if n == fd));
    }
}
