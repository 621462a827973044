//! One inode that the guest remembers: what it is, and how it is reached again.
//!
//! By its descriptor; or, if that was let go, by directory and name, and then only if what is found there
//! is the same inode. [`super::inodes`] has all of them, and decides which are let go.

use std::{
    ffi::CString,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use rustix::fs::{FileType, Statx};

use super::identity::{Identity, Reached};

/// One inode.
pub(super) struct Inode {
    /// The guest's number for it.
    pub node: u64,
    pub identity: Identity,
    way: Mutex<Way>,
    /// Reached since the last look for inodes to let go.
    pub used: AtomicBool,
    /// What the content was when the guest last opened it.
    opened: Mutex<Option<Version>>,
}

/// Two equal versions of a file have the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    changed: (i64, u32),
    size: u64,
}

/// File systems count time in ticks: what was changed more recently than this may change again
/// without a new time.
const TICK: Duration = Duration::from_millis(20);

impl Version {
    /// None if it cannot be told from what may come right after it.
    fn of(stat: &Statx) -> Option<Self> {
        let changed = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec);
        let since_epoch = Duration::new(u64::try_from(changed.0).ok()?, changed.1);
        let age = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH + since_epoch)
            .ok()?;
        (age > TICK).then_some(Self {
            changed,
            size: stat.stx_size,
        })
    }
}

/// How it is reached.
pub(super) struct Way {
    /// Unless it is let go.
    pub fd: Option<Arc<OwnedFd>>,
    /// Directory and name where it was last seen.
    pub seen: Option<(Arc<Inode>, CString)>,
}

impl Inode {
    /// One that was just reached.
    pub fn new(
        node: u64,
        identity: Identity,
        fd: OwnedFd,
        seen: Option<(Arc<Self>, CString)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            identity,
            way: Mutex::new(Way {
                fd: Some(Arc::new(fd)),
                seen,
            }),
            used: AtomicBool::new(true),
            opened: Mutex::new(None),
        })
    }

    /// How it is reached now.
    pub fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mount that it lies on.
    pub fn mount(&self) -> u64 {
        self.identity.mount
    }

    /// The guest opens it: is what its kernel has cached of the content since it last did still right?
    /// (It asks for attributes too, but believes them for a while.)
    pub fn opened_unchanged(&self, stat: &Statx) -> bool {
        let version = Version::of(stat);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *opened, version);
        version.is_some() && version == before
    }

    /// A descriptor that names it: walks down by name from the nearest directory that is held, through
    /// at most `max_depth` that are not.
    pub fn walk(self: &Arc<Self>, max_depth: usize) -> io::Result<Arc<OwnedFd>> {
        let stale = || io::Error::from_raw_os_error(libc::ESTALE);
        let mut below = Vec::new();
        let mut current = self.clone();
        let mut fd = loop {
            let way = current.way();
            if let Some(fd) = &way.fd {
                break fd.clone();
            }
            let (directory, name) = way.seen.clone().ok_or_else(stale)?;
            drop(way);
            below.push((current, name));
            if below.len() > max_depth {
                return Err(stale());
            }
            current = directory;
        };
        while let Some((inode, name)) = below.pop() {
            let reached = Reached::by_name(&fd, &name).map_err(|_| stale())?;
            if !inode.identity.is_of(&reached.stat) {
                return Err(stale());
            }
            fd = Arc::new(reached.fd);
        }
        Ok(fd)
    }

    /// What it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.identity.kind.into())
    }
}

impl Drop for Inode {
    /// Lets go of the directories above one by one: a guest can nest them deeper than our stack.
    fn drop(&mut self) {
        let mut above = self
            .way
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .seen
            .take();
        while let Some((directory, _)) = above {
            above = Arc::into_inner(directory).and_then(|mut directory| {
                directory
                    .way
                    .get_mut()
                    .unwrap_or_else(PoisonError::into_inner)
                    .seen
                    .take()
            });
        }
    }
}
