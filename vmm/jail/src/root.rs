//! A new root directory, the old one detached.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags,
    },
};

use crate::{
    Bind, BindAccess, Error, TmpfsRoot,
    sys::{MountAttributes, set_mount_attributes},
};

/// Where the tmpfs is mounted for the moment before it becomes the root. Any directory will do:
/// everything beneath it was opened before.
const STAGING: &str = "/proc";

fn failed(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> Error {
    let path = path.into();
    move |source| Error::Root {
        act,
        path,
        source: source.into(),
    }
}

/// Makes a mount point the root. The jail's copy of every mount is a slave of the host's: mounts
/// that the host makes later beneath the directory arrive, nothing goes back.
pub(crate) fn pivot_into_directory(directory: &Path) -> Result<(), Error> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(failed("make slaves of all mounts beneath", "/"))?;
    let fd = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed("open", directory))?;
    let stat = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::empty())
        .map_err(failed("stat", directory))?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::RootNotMountPoint(directory.to_owned()));
    }
    // Of these only the jail's copy is changed. Mounts that arrive later bring flags of their own.
    set_mount_attributes(fd.as_fd(), MountAttributes::SERVED).map_err(|source| Error::Root {
        act: "restrict",
        path: directory.to_owned(),
        source,
    })?;
    pivot(fd.as_fd(), directory)
}

/// Makes a new tmpfs the root, with the binds in it, all read-only and private.
pub(crate) fn pivot_into_tmpfs(tmpfs: &TmpfsRoot) -> Result<(), Error> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(failed("make private all mounts beneath", "/"))?;
    // Sources are opened first: the staging mount may hide them.
    let sources = tmpfs
        .binds
        .iter()
        .filter_map(|bind| Source::open(bind).map(|s| s.map(|s| (bind, s))).transpose())
        .collect::<Result<Vec<_>, Error>>()?;

    let root = new_tmpfs().map_err(failed("make", "a tmpfs"))?;
    rustix::mount::move_mount(
        &root,
        "",
        CWD,
        STAGING,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(failed("mount a tmpfs on", STAGING))?;
    for directory in &tmpfs.directories {
        make_directories(root.as_fd(), directory)?;
    }
    for (bind, source) in sources {
        source.place(root.as_fd(), bind)?;
    }
    set_mount_attributes(root.as_fd(), MountAttributes::EMPTY_ROOT).map_err(|source| {
        Error::Root {
            act: "make read-only",
            path: "/".into(),
            source,
        }
    })?;
    pivot(root.as_fd(), Path::new(STAGING))
}

fn new_tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "mode", "0755")?;
    // Directories and links only: a few dozen inodes and no data.
    rustix::mount::fsconfig_set_string(&context, "nr_inodes", "256")?;
    rustix::mount::fsconfig_set_string(&context, "size", "64k")?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// Swaps roots with the new root on both sides, so that the old one ends up stacked on top of it and
/// needs no place of its own, then detaches the old one (pivot_root(2), "pivot_root(".", ".")").
fn pivot(new_root: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    rustix::process::fchdir(new_root).map_err(failed("change into", path))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot into", path))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("detach", "the old root"))?;
    rustix::process::chdir("/").map_err(failed("change into", "/"))
}

/// What a bind puts into the new root.
enum Source {
    Link(PathBuf),
    Directory(OwnedFd),
    File(OwnedFd),
}

impl Source {
    fn open(bind: &Bind) -> Result<Option<Self>, Error> {
        let path = &bind.source;
        let io = |act, source: io::Error| Error::Root {
            act,
            path: path.clone(),
            source,
        };
        let kind = match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && bind.optional => return Ok(None),
            Err(e) => return Err(io("find", e)),
            Ok(metadata) => metadata.file_type(),
        };
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|e| io("read the link", e))?;
            return Ok(Some(Self::Link(target)));
        }
        let tree = rustix::mount::open_tree(
            CWD,
            path,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .map_err(failed("clone the mount of", path))?;
        let attributes = match bind.access {
            BindAccess::ReadOnly => MountAttributes::READ_ONLY,
            BindAccess::Device => MountAttributes::DEVICE,
        };
        set_mount_attributes(tree.as_fd(), attributes).map_err(|e| io("restrict", e))?;
        Ok(Some(if kind.is_dir() {
            Self::Directory(tree)
        } else {
            Self::File(tree)
        }))
    }

    fn place(self, root: BorrowedFd<'_>, bind: &Bind) -> Result<(), Error> {
        let relative = relative(&bind.target)?;
        if let Some(parent) = relative.parent() {
            make_directories(root, parent)?;
        }
        let tree = match self {
            Self::Link(target) => {
                return rustix::fs::symlinkat(&target, root, &relative)
                    .map_err(failed("make the link", &bind.target));
            }
            Self::Directory(tree) => {
                make_directories(root, &relative)?;
                tree
            }
            Self::File(tree) => {
                let mode = Mode::from_raw_mode(0o444);
                rustix::fs::mknodat(root, &relative, FileType::RegularFile, mode, 0)
                    .map_err(failed("make", &bind.target))?;
                tree
            }
        };
        rustix::mount::move_mount(
            &tree,
            "",
            root,
            &relative,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(failed("mount on", &bind.target))
    }
}

/// The path without its leading slash; one that climbs is refused.
fn relative(path: &Path) -> Result<PathBuf, Error> {
    let names = path
        .components()
        .filter(|c| !matches!(c, Component::RootDir | Component::CurDir));
    let relative = names
        .map(|c| match c {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect::<Option<PathBuf>>();
    relative.ok_or_else(|| Error::Root {
        act: "use the target",
        path: path.to_owned(),
        source: io::ErrorKind::InvalidInput.into(),
    })
}

fn make_directories(root: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    let mut made = PathBuf::new();
    for component in relative(path)?.components() {
        made.push(component);
        match rustix::fs::mkdirat(root, &made, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(failed("make the directory", path)(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_taken_relative_to_the_new_root() {
        assert_eq!(
            relative(Path::new("/usr/lib")).unwrap(),
            Path::new("usr/lib")
        );
        assert_eq!(
            relative(Path::new("usr/./lib")).unwrap(),
            Path::new("usr/lib")
        );
    }

    #[test]
    fn a_target_that_climbs_is_refused() {
        assert!(relative(Path::new("/usr/../../etc")).is_err());
        assert!(relative(Path::new("..")).is_err());
    }
}
