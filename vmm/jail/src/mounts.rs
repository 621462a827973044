//! Mounts that hang nowhere and are reached by a descriptor only: from inside, `..` leads nowhere.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags},
};

use crate::Error;

fn failed(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Error {
    let path = path.into();
    move |source| Error::DetachedMount {
        act,
        path,
        source: source.into(),
    }
}

/// A directory of the host as the root of a mount of its own (open_tree(2) with OPEN_TREE_CLONE).
///
/// # Errors
/// When the directory does not exist or the process may not mount.
pub fn detached_directory(directory: &Path) -> Result<OwnedFd, Error> {
    rustix::mount::open_tree(
        CWD,
        directory,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(failed("clone", directory))
}

/// This process's own `/proc/self/fd`, of a new procfs that knows processes of this PID namespace and
/// nothing else (`subset=pid`: no /proc/sys), detached so that `..` does not lead to them either.
///
/// # Errors
/// When the process may not mount.
pub fn own_descriptors() -> Result<OwnedFd, Error> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(failed("open", "procfs"))?;
    rustix::mount::fsconfig_set_string(&context, "subset", "pid")
        .map_err(failed("configure", "procfs"))?;
    rustix::mount::fsconfig_create(&context).map_err(failed("make", "procfs"))?;
    let proc = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .map_err(failed("mount", "procfs"))?;
    rustix::mount::open_tree(
        &proc,
        "self/fd",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(failed("clone", "self/fd"))
}
