//! A pod's directory: made, and removed without ever deleting what others put there.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::DirBuilderExt},
    },
    path::Path,
};

use nix::mount::MsFlags;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, unlinkat};

use super::{HostError, mount};
use crate::plan::{PodPaths, UNTRUSTED};

/// tree/<container>/mounts/<N>: nothing of ours lies deeper.
const DEPTH: usize = 4;

/// Makes the directory and its two mounts. What a pod of the same name left there is removed first.
pub(crate) fn create(paths: &PodPaths) -> Result<(), HostError> {
    if let Some(state) = paths.dir.parent() {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(state);
        made.map_err(HostError::path("make", state))?;
    }
    remove(paths)?;
    for (path, mode) in [
        (paths.dir.clone(), 0o700),
        (paths.tree(), 0o755),
        (paths.shared(), 0o755),
        (paths.stage(), 0o700),
        (paths.ports(), 0o700),
    ] {
        let made = fs::DirBuilder::new().mode(mode).create(&path);
        made.map_err(HostError::path("make", &path))?;
    }
    let read_only = UNTRUSTED | MsFlags::MS_RDONLY;
    mount::bind_directory(
        &paths.tree(),
        &paths.shared(),
        read_only,
        MsFlags::MS_SHARED,
    )?;
    mount::bind_directory(
        &paths.stage(),
        &paths.stage(),
        UNTRUSTED,
        MsFlags::MS_PRIVATE,
    )
}

/// Unmounts and removes the directory. Goes on after a failure; tells the first. Idempotent.
pub(crate) fn remove(paths: &PodPaths) -> Result<(), HostError> {
    let mut first = None;
    let mut note = |result: Result<(), HostError>| {
        if let Err(error) = result {
            first.get_or_insert(error);
        }
    };
    // Only mount points whose path no guest can change; a mount takes what is beneath it along.
    let shared = paths.shared();
    for found in mount::mounts_beneath(&paths.dir)?.iter().rev() {
        let ours = found.path.strip_prefix(&shared).is_ok_and(is_ours)
            || found.path.starts_with(paths.stage());
        if ours {
            note(mount::detach(&found.path));
        }
    }
    note(mount::detach(&shared));
    if let Some(left) = mount::mounts_beneath(&paths.dir)?.first() {
        note(Err(HostError::Foreign {
            path: left.path.clone(),
        }));
    } else {
        note(remove_directory(&paths.dir, DEPTH));
    }
    first.map_or(Ok(()), Err)
}

/// `<container>/rootfs` or `<container>/mounts/<N>`, the places where we mount.
fn is_ours(beneath_shared: &Path) -> bool {
    let parts: Vec<_> = beneath_shared
        .components()
        .map(|part| part.as_os_str())
        .collect();
    match parts.as_slice() {
        [_, rootfs] => *rootfs == "rootfs",
        [_, mounts, _] => *mounts == "mounts",
        _ => false,
    }
}

/// Removes an empty-but-for-ours directory: directories, sockets and empty files (the mount points of
/// file binds). Never follows a link, never crosses a mount, never deletes content.
pub(crate) fn remove_directory(path: &Path, depth: usize) -> Result<(), HostError> {
    remove_at(CWD, path, path, depth)
}

fn remove_at(parent: impl AsFd, name: &Path, path: &Path, depth: usize) -> Result<(), HostError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // An absolute path (the pod's own) begins outside; within it no link and no mount is crossed.
    let resolve = if name.is_absolute() {
        ResolveFlags::empty()
    } else {
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV
    };
    let dir = match openat2(&parent, name, flags, Mode::empty(), resolve) {
        Ok(dir) => dir,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(HostError::path("open", path)(errno)),
    };
    let failed = |errno: rustix::io::Errno| HostError::path("remove", path)(errno);
    let mut first = None;
    for entry in Dir::read_from(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let bytes = entry.file_name().to_bytes();
        if bytes == b"." || bytes == b".." {
            continue;
        }
        let name = Path::new(std::ffi::OsStr::from_bytes(bytes));
        let inside = path.join(name);
        let removed = match entry.file_type() {
            FileType::Directory if depth > 0 => {
                remove_at(&dir, name, &inside, depth.saturating_sub(1))
            }
            FileType::Socket => {
                unlinkat(&dir, name, AtFlags::empty()).map_err(HostError::path("remove", &inside))
            }
            FileType::RegularFile => remove_empty_file(&dir, name, &inside),
            _ => Err(HostError::Foreign { path: inside }),
        };
        if let Err(error) = removed {
            first.get_or_insert(error);
        }
    }
    if let Some(error) = first {
        return Err(error);
    }
    match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(HostError::path("remove", path)(io::Error::from(errno))),
    }
}

fn remove_empty_file(dir: impl AsFd, name: &Path, path: &Path) -> Result<(), HostError> {
    let found = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
    if found.map_err(HostError::path("look at", path))?.st_size != 0 {
        return Err(HostError::Foreign {
            path: path.to_owned(),
        });
    }
    unlinkat(&dir, name, AtFlags::empty()).map_err(HostError::path("remove", path))
}

#[cfg(test)]
#[path = "pod_dir_tests.rs"]
mod tests;
