//! What each serving thread has of its own: its file system user, its umask, its working directory,
//! and for a moment less capabilities. All of these are per thread in Linux once it has left the
//! process's file system state (unshare(2) with CLONE_FS).
//!
//! The last values stay until the next request wants others: most requests come from the same user
//! with the same umask, and nothing but making a file looks at them.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, setfsgid, setfsuid},
};
use rustix::thread::CapabilitySet;

#[derive(Clone, Copy)]
struct Own {
    uid: u32,
    gid: u32,
    umask: u32,
}

thread_local! {
    /// None: the thread shares its file system state with others.
    static OWN: Cell<Option<Own>> = const { Cell::new(None) };
}

/// Gives the calling thread a file system state of its own, with `directory` as working directory.
fn own(directory: &OwnedFd) -> io::Result<Own> {
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    unshare(CloneFlags::CLONE_FS)?;
    rustix::process::fchdir(directory.as_fd())?;
    umask(Mode::empty());
    // Changing the user must not change the capabilities: see `SECBIT_NO_SETUID_FIXUP` in the jail.
    let own = Own {
        uid: file_system_uid(),
        gid: file_system_gid(),
        umask: 0,
    };
    OWN.set(Some(own));
    Ok(own)
}

/// Makes `proc` (`/proc/self/fd`) the calling thread's working directory: the extended attribute
/// calls take paths only, and `N` there means descriptor N.
pub(super) fn enter_descriptors(proc: &OwnedFd) -> io::Result<()> {
    own(proc).map(drop)
}

/// What the calling thread makes from now on belongs to this user and is masked by this umask (unless
/// the directory has a default ACL: that is why the mask is not simply applied to the mode).
pub(super) fn make_as(proc: &OwnedFd, uid: u32, gid: u32, mask: u32) -> io::Result<()> {
    let now = own(proc)?;
    if now.umask != mask {
        umask(Mode::from_bits_truncate(mask & 0o777));
        OWN.set(Some(Own { umask: mask, ..now }));
    }
    if (now.uid, now.gid) == (uid, gid) {
        return Ok(());
    }
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    // These calls report nothing, but tell what is in force.
    let own = Own {
        uid: file_system_uid(),
        gid: file_system_gid(),
        umask: mask,
    };
    OWN.set(Some(own));
    if (own.uid, own.gid) == (uid, gid) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EOVERFLOW))
    }
}

fn file_system_uid() -> u32 {
    setfsuid(Uid::from_raw(u32::MAX)).as_raw()
}

fn file_system_gid() -> u32 {
    setfsgid(Gid::from_raw(u32::MAX)).as_raw()
}

/// While it lives, writing and truncating clear set-id bits, as for a caller without CAP_FSETID.
pub(super) struct ClearingSetId(rustix::thread::CapabilitySets);

impl ClearingSetId {
    pub fn begin() -> io::Result<Self> {
        let before = rustix::thread::capabilities(None)?;
        let mut sets = before;
        sets.effective.remove(CapabilitySet::FSETID);
        rustix::thread::set_capabilities(None, sets)?;
        Ok(Self(before))
    }
}

impl Drop for ClearingSetId {
    fn drop(&mut self) {
        // Raising what is permitted cannot fail; if it did, set-id bits would be lost, not gained.
        let _ = rustix::thread::set_capabilities(None, self.0);
    }
}
