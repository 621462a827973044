//! Walking and making paths inside a root filesystem that is not trusted.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, mkdirat,
        mknodat, openat, openat2, symlinkat, unlinkat,
    },
    io::Errno,
};

use crate::init::{InitError, act};

/// The directory that becomes the container's `/`.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
}

/// Components that mean something: `/a/../b/.` is `b`. `..` stops at the root, as in a chroot.
fn normalize(path: &Path) -> Vec<OsString> {
    let mut parts: Vec<OsString> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.to_owned()),
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    parts
}

/// A path inside a root filesystem without `.`, `..` and the leading `/`.
pub(crate) fn cleaned(path: &Path) -> PathBuf {
    normalize(path).iter().collect()
}

impl Root {
    /// `directory` is open with O_PATH on the mount of the root filesystem.
    pub(crate) fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    fn walk(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlags::NO_MAGICLINKS)
    }

    fn resolve(
        &self,
        path: &Path,
        flags: OFlags,
        without: ResolveFlags,
    ) -> rustix::io::Result<OwnedFd> {
        loop {
            match openat2(
                &self.directory,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | without,
            ) {
                // Something was renamed or mounted meanwhile.
                Err(Errno::AGAIN | Errno::INTR) => continue,
                other => return other,
            }
        }
    }

    /// Opens what is there, with O_PATH; `None` when nothing is.
    pub(crate) fn open(&self, path: &Path) -> Result<Option<OwnedFd>, InitError> {
        match self.walk(path, OFlags::PATH) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(act(e, || format!("open {path:?} in the root filesystem"))),
        }
    }

    /// Opens a directory, with O_PATH; `None` when a link is on the way or in its place.
    pub(crate) fn open_without_links(&self, path: &Path) -> Result<Option<OwnedFd>, InitError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.resolve(path, flags, ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::LOOP) => Ok(None),
            Err(e) => Err(act(e, || format!("open {path:?} in the root filesystem"))),
        }
    }

    /// Opens a directory, making what is missing with mode 0755.
    pub(crate) fn make_directory(&self, path: &Path) -> Result<OwnedFd, InitError> {
        let mut here = PathBuf::from("/");
        let mut directory = self
            .walk(&here, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| act(e, || "open the root filesystem".to_owned()))?;
        for name in normalize(path) {
            here.push(&name);
            let doing = || format!("mkdir {here:?}");
            directory = match self.walk(&here, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    match mkdirat(&directory, &name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(act(e, doing)),
                    }
                    self.walk(&here, OFlags::PATH | OFlags::DIRECTORY)
                        .map_err(|e| act(e, doing))?
                }
                Err(e) => return Err(act(e, doing)),
            };
        }
        Ok(directory)
    }

    /// The parent directory, made if missing, and the last component.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString), InitError> {
        let mut parts = normalize(path);
        let name = parts.pop().ok_or_else(|| InitError::Act {
            act: format!("make {path:?}"),
            reason: "it is the root directory".to_owned(),
        })?;
        let directory = self.make_directory(&parts.iter().collect::<PathBuf>())?;
        Ok((directory, name))
    }

    /// Opens what is there (O_PATH), making an empty file and its directories when nothing is.
    pub(crate) fn make_file(&self, path: &Path) -> Result<OwnedFd, InitError> {
        // Before links are followed, as runc cleans its paths: "/a/../b" needs no /a.
        let path: &Path = &normalize(path).iter().collect::<PathBuf>();
        if let Some(found) = self.open(path)? {
            return Ok(found);
        }
        let (directory, name) = self.parent(path)?;
        let doing = || format!("make file {path:?}");
        match openat(
            &directory,
            &name,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        ) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(e) => return Err(act(e, doing)),
        }
        self.walk(path, OFlags::PATH).map_err(|e| act(e, doing))
    }

    /// Makes a symbolic link; what is there stays.
    pub(crate) fn make_link(&self, path: &Path, to: &str) -> Result<(), InitError> {
        let (directory, name) = self.parent(path)?;
        match symlinkat(to, &directory, &name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(act(e, || format!("link {path:?} to {to:?}"))),
        }
    }

    /// Makes a symbolic link in place of whatever file or link is there.
    pub(crate) fn replace_link(&self, path: &Path, to: &str) -> Result<(), InitError> {
        let (directory, name) = self.parent(path)?;
        match unlinkat(&directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(act(e, || format!("remove {path:?}"))),
        }
        symlinkat(to, &directory, &name).map_err(|e| act(e, || format!("link {path:?} to {to:?}")))
    }

    /// Makes a device node or a fifo with exactly this mode and owner.
    pub(crate) fn make_node(
        &self,
        path: &Path,
        kind: FileType,
        device: Dev,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<(), InitError> {
        let (directory, name) = self.parent(path)?;
        let doing = || format!("make device {path:?}");
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match mknodat(&directory, &name, kind, mode, device) {
            Ok(()) => {}
            // As runc does: the node that is there is used, and is not changed.
            Err(Errno::EXIST) => return Ok(()),
            Err(e) => return Err(act(e, doing)),
        }
        // The node was just made in a directory nobody else can reach yet: no link can be in its place.
        chmodat(&directory, &name, mode, AtFlags::empty()).map_err(|e| act(e, doing))?;
        chownat(
            &directory,
            &name,
            Some(Uid::from_raw(owner.0)),
            Some(Gid::from_raw(owner.1)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| act(e, doing))
    }

    /// Opens for reading and writing.
    pub(crate) fn open_device(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(self.walk(path, OFlags::RDWR | OFlags::NOCTTY)?)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn root(path: &Path) -> Root {
        let directory = rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .expect("the directory is there");
        Root::new(directory)
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let outside = tempfile::tempdir().expect("tmp");
        let inside = tempfile::tempdir().expect("tmp");
        symlink(outside.path(), inside.path().join("absolute")).expect("link");
        symlink("../../../../../..", inside.path().join("up")).expect("link");
        let root = root(inside.path());
        // The absolute link begins at the container's root, where its target does not exist.
        assert!(
            root.open(Path::new("/absolute"))
                .expect("resolves")
                .is_none()
        );
        root.make_directory(Path::new("/up/made")).expect("mkdir");
        assert!(inside.path().join("made").is_dir());
        assert!(root.make_directory(Path::new("/absolute/made")).is_err());
        assert_eq!(fs::read_dir(outside.path()).expect("dir").count(), 0);
    }

    #[test]
    fn a_link_on_the_way_is_seen() {
        let inside = tempfile::tempdir().expect("tmp");
        fs::create_dir_all(inside.path().join("real/below")).expect("mkdir");
        symlink("real", inside.path().join("link")).expect("link");
        let root = root(inside.path());
        let open = |path: &str| root.open_without_links(Path::new(path)).expect("resolves");
        assert!(open("/real/below").is_some());
        assert!(open("/link").is_none());
        assert!(open("/link/below").is_none());
    }

    #[test]
    fn directories_and_files_are_made_once() {
        let inside = tempfile::tempdir().expect("tmp");
        let root = root(inside.path());
        root.make_file(Path::new("/a/b/../c/file")).expect("made");
        root.make_file(Path::new("/a/c/file")).expect("found");
        assert!(inside.path().join("a/c/file").is_file());
        assert!(!inside.path().join("a/b").exists());
    }

    #[test]
    fn the_root_is_no_file() {
        let inside = tempfile::tempdir().expect("tmp");
        let root = root(inside.path());
        assert!(root.make_link(Path::new("/.."), "x").is_err());
    }

    #[test]
    fn a_link_takes_the_place_of_a_file() {
        let inside = tempfile::tempdir().expect("tmp");
        fs::write(inside.path().join("ptmx"), "").expect("write");
        let root = root(inside.path());
        root.make_link(Path::new("/ptmx"), "pts/ptmx")
            .expect("stays");
        assert!(inside.path().join("ptmx").is_file());
        root.replace_link(Path::new("/ptmx"), "pts/ptmx")
            .expect("replaced");
        assert_eq!(
            fs::read_link(inside.path().join("ptmx")).expect("a link"),
            Path::new("pts/ptmx")
        );
    }
}
