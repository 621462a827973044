//! `tmpcopyup`: a tmpfs that begins with what the image has in its place.
//!
//! Files, directories, links, fifos and devices with their modes and owners, as runc copies them. Sockets
//! are left out: nobody listens. What a mount below holds is copied like the rest. It takes as much memory as the tmpfs
//! may, charged to the container.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fchmod,
        fchown, mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat,
    },
    io::Errno,
};

/// Copies what is in the directory `from` into the empty filesystem `to`.
pub(super) fn fill(to: &OwnedFd, from: &OwnedFd) -> io::Result<()> {
    let mut directories = vec![PathBuf::from(".")];
    // A queue, not recursion: the image chose the depth.
    while let Some(directory) = directories.pop() {
        let source = open_directory(from.as_fd(), &directory)?;
        let target = open_directory(to.as_fd(), &directory)?;
        for entry in Dir::read_from(&source)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let name = Path::new(std::ffi::OsStr::new(
                std::str::from_utf8(name.to_bytes()).map_err(|_| Errno::ILSEQ)?,
            ));
            let stat = statat(&source, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if copy(&source, &target, name, &stat)? {
                directories.push(directory.join(name));
            }
        }
    }
    Ok(())
}

/// Never through a link: what the image names stays in its directory.
fn open_directory(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

/// Copies one entry; answers whether it is a directory, which is to be gone through.
fn copy(source: &OwnedFd, target: &OwnedFd, name: &Path, stat: &Stat) -> io::Result<bool> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match kind {
        FileType::Directory => {
            mkdirat(target, name, mode)?;
            let made = open_directory(target.as_fd(), name)?;
            fchown(&made, Some(user), Some(group))?;
            fchmod(&made, mode)?;
            return Ok(true);
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut from = File::from(openat(source, name, flags, Mode::empty())?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut to = File::from(openat(target, name, flags, mode)?);
            io::copy(&mut from, &mut to)?;
            fchown(&to, Some(user), Some(group))?;
            fchmod(&to, mode)?;
        }
        FileType::Symlink => {
            let link = readlinkat(source, name, Vec::new())?;
            symlinkat(link.as_c_str(), target, name)?;
            chownat(
                target,
                name,
                Some(user),
                Some(group),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
            mknodat(target, name, kind, mode, stat.st_rdev)?;
            chownat(
                target,
                name,
                Some(user),
                Some(group),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        _ => {}
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    };

    fn open(path: &Path) -> OwnedFd {
        OwnedFd::from(File::open(path).expect("a directory"))
    }

    #[test]
    fn a_tree_is_copied_with_modes_and_links() {
        let (from, to) = (
            tempfile::tempdir().expect("tmp"),
            tempfile::tempdir().expect("tmp"),
        );
        fs::create_dir_all(from.path().join("a/b")).expect("mkdir");
        fs::write(from.path().join("a/b/file"), "content").expect("write");
        fs::set_permissions(
            from.path().join("a/b/file"),
            fs::Permissions::from_mode(0o4751),
        )
        .expect("chmod");
        fs::set_permissions(from.path().join("a"), fs::Permissions::from_mode(0o1777))
            .expect("chmod");
        symlink("/etc/passwd", from.path().join("link")).expect("link");
        fill(&open(to.path()), &open(from.path())).expect("copied");
        let copied = to.path().join("a/b/file");
        assert_eq!(fs::read_to_string(&copied).expect("read"), "content");
        let mode = |path: &Path| fs::symlink_metadata(path).expect("there").mode() & 0o7777;
        assert_eq!(mode(&copied), 0o4751);
        assert_eq!(mode(&to.path().join("a")), 0o1777);
        assert_eq!(
            fs::read_link(to.path().join("link")).expect("a link"),
            Path::new("/etc/passwd")
        );
    }

    #[test]
    fn a_link_in_place_of_a_directory_is_not_followed() {
        let outside = tempfile::tempdir().expect("tmp");
        let (from, to) = (
            tempfile::tempdir().expect("tmp"),
            tempfile::tempdir().expect("tmp"),
        );
        fs::write(outside.path().join("secret"), "x").expect("write");
        symlink(outside.path(), from.path().join("directory")).expect("link");
        fill(&open(to.path()), &open(from.path())).expect("copied");
        let copied = fs::symlink_metadata(to.path().join("directory")).expect("there");
        assert!(copied.file_type().is_symlink());
    }
}
