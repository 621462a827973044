//! The shared directory as a file system: what FUSE requests do on the host.
//!
//! fuse-backend-rs parses the requests (its `Server`); its own `PassthroughFs` is not used, because
//! it lacks what a pod's files need: O_TMPFILE, copy_file_range, statx and syncfs cannot be added from
//! outside, xattrs go through a `/proc` that the jail does not have, every inode costs a descriptor
//! for as long as the guest remembers it, and a creator's supplementary groups do not count.
//!
//! Rules that every operation keeps:
//! - a name is one component, checked by [`name::component`]; the kernel is never given a path with a
//!   slash in it, nor one that it would follow a link for;
//! - only regular files and directories are ever opened for more than their metadata, so that no
//!   device, fifo or socket of the host is touched;
//! - the guest's kernel has checked permissions. This process acts as root with few capabilities, and
//!   as the caller's user only where something is made, so that it belongs to the caller.
//!
//! | file | job |
//! |---|---|
//! | `inodes.rs` | all inodes that the guest remembers, and which of them are let go |
//! | `inode.rs` | one of them, and how it is reached again |
//! | `identity.rs` | which inode a name or descriptor leads to |
//! | `handle.rs` | open files and directories |
//! | `thread.rs` | what each serving thread has of its own: user, umask, working directory |
//! | `entry.rs` | names: lookup, making, linking, renaming, removing |
//! | `file.rs` | opening, reading, writing, allocating |
//! | `directory.rs` | listing |
//! | `attributes.rs` | stat and its changes |
//! | `xattr.rs` | extended attributes |
//! | `fuse.rs` | the trait that the request parser calls |
//! | `extra.rs` | requests that the parser does not know |

mod attributes;
mod directory;
mod entry;
pub mod extra;
mod file;
mod fuse;
mod handle;
mod held;
mod identity;
mod inode;
mod inodes;
pub mod name;
mod thread;
mod xattr;

use std::{
    io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::fs::{Mode, OFlags};

use self::{handle::Handles, identity::Reached, inodes::Inodes};

/// How long the guest may believe names and attributes without asking again. Volumes can change
/// behind its back (a ConfigMap that is swapped), so not for long.
const VALIDITY: Duration = Duration::from_secs(1);

/// The shared directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act}")]
pub struct ShareError {
    act: &'static str,
    source: io::Error,
}

/// A directory tree, served.
pub struct Share {
    inodes: Inodes,
    handles: Handles,
    /// `/proc/self/fd`: the way from a descriptor that only names a file to one that opens it.
    proc: OwnedFd,
    /// The guest mounts other host mounts as mounts of their own.
    submounts: AtomicBool,
}

impl Share {
    /// Serves the directory `root`. `proc` is the process's own `/proc/self/fd`; `descriptors` bounds
    /// how many of them remembered inodes may take.
    ///
    /// # Errors
    /// The root cannot be opened.
    pub fn new(
        root: &std::path::Path,
        proc: OwnedFd,
        descriptors: usize,
    ) -> Result<Self, ShareError> {
        let failed = |act| move |e: io::Error| ShareError { act, source: e };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|e| failed("open the shared directory")(e.into()))?;
        let root = Reached::new(fd).map_err(failed("stat the shared directory"))?;
        Ok(Self {
            inodes: Inodes::new(root, descriptors),
            handles: Handles::default(),
            proc,
            submounts: AtomicBool::new(false),
        })
    }

    fn submounts(&self) -> bool {
        self.submounts.load(Ordering::Relaxed)
    }
}
