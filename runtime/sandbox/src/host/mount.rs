//! Mounts on the host.
//!
//! Paths that a guest can change are never walked by name: where a submount of a bind's source must
//! be reached, `openat2` walks without following links, and the descriptor is what is acted on.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::{HostError, facts, overlay};
use crate::plan::{Propagation, SourceKind, UNTRUSTED};

const NONE: Option<&Path> = None;

/// A line of /proc/thread-self/mountinfo (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountPoint {
    pub path: PathBuf,
    /// Per-mount flags.
    pub flags: MsFlags,
}

/// The mounts at `dir` and beneath it, in the order they were made.
pub(crate) fn mounts_beneath(dir: &Path) -> Result<Vec<MountPoint>, HostError> {
    let path = "/proc/thread-self/mountinfo";
    let text = std::fs::read(path).map_err(HostError::path("read", path))?;
    let mut mounts = parse_mountinfo(&text);
    mounts.retain(|mount| mount.path.starts_with(dir));
    Ok(mounts)
}

fn parse_mountinfo(text: &[u8]) -> Vec<MountPoint> {
    let lines = text.split(|byte| *byte == b'\n');
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ').skip(4);
        let path = unescape(fields.next()?);
        let options = fields.next()?;
        let mut flags = MsFlags::empty();
        for option in options.split(|byte| *byte == b',') {
            flags |= match option {
                b"ro" => MsFlags::MS_RDONLY,
                b"nosuid" => MsFlags::MS_NOSUID,
                b"nodev" => MsFlags::MS_NODEV,
                b"noexec" => MsFlags::MS_NOEXEC,
                b"noatime" => MsFlags::MS_NOATIME,
                b"nodiratime" => MsFlags::MS_NODIRATIME,
                b"relatime" => MsFlags::MS_RELATIME,
                _ => MsFlags::empty(),
            };
        }
        Some(MountPoint { path, flags })
    };
    lines.filter_map(mount).collect()
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
pub(super) fn unescape(field: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Makes `target`, a directory, a mount of `source` with a propagation of its own.
pub(crate) fn bind_directory(
    source: &Path,
    target: &Path,
    flags: MsFlags,
    propagation: MsFlags,
) -> Result<(), HostError> {
    let act = || -> nix::Result<()> {
        nix::mount::mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)?;
        // Out of the peer group that it got from the mount it lies in, before anything else.
        nix::mount::mount(NONE, target, NONE, MsFlags::MS_PRIVATE, NONE)?;
        nix::mount::mount(NONE, target, NONE, propagation, NONE)?;
        let remount = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags;
        nix::mount::mount(NONE, target, NONE, remount, NONE)
    };
    act().map_err(HostError::path("bind", target))
}

/// Mounts a filesystem.
pub(crate) fn filesystem(
    fstype: &str,
    source: &str,
    target: &Path,
    flags: MsFlags,
    data: &str,
) -> Result<(), HostError> {
    let mounted = if data.len() <= overlay::OPTIONS_LEN {
        nix::mount::mount(Some(source), target, Some(fstype), flags, Some(data))
    } else {
        let shortened = overlay::shorten(data).filter(|_| fstype == "overlay");
        match shortened.filter(|shortened| shortened.data.len() <= overlay::OPTIONS_LEN) {
            Some(shortened) => mount_in(&shortened.directory, || {
                let data = Some(shortened.data.as_str());
                nix::mount::mount(Some(source), target, Some(fstype), flags, data)
            }),
            None => Err(nix::errno::Errno::E2BIG),
        }
    };
    mounted.map_err(|errno| HostError::Mount {
        fstype: fstype.to_owned(),
        from: source.to_owned(),
        path: target.to_owned(),
        source: errno.into(),
    })
}

/// Runs `act` in a directory. The working directory belongs to the whole process, so a thread gets
/// one of its own.
fn mount_in(directory: &Path, act: impl FnOnce() -> nix::Result<()> + Send) -> nix::Result<()> {
    let body = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(directory)?;
        act()
    };
    std::thread::scope(|scope| {
        scope
            .spawn(body)
            .join()
            .unwrap_or(Err(nix::errno::Errno::EAGAIN))
    })
}

/// A bind to be made.
pub(crate) struct Bind<'a> {
    pub source: &'a Path,
    /// What the plan found there.
    pub kind: SourceKind,
    pub read_only: bool,
    pub recursive: bool,
    pub propagation: Propagation,
}

/// Binds `bind.source` at `target`. It gets its flags at `stage`, a mount point in a private mount,
/// so that what it shows is never without them.
pub(crate) fn bind(bind: &Bind<'_>, stage: &Path, target: &Path) -> Result<(), HostError> {
    let source = open_path(bind.source)?;
    let found = source
        .metadata()
        .map_err(HostError::path("look at", bind.source))?;
    if facts::kind(found.file_type()) != bind.kind {
        return Err(HostError::Changed {
            path: bind.source.to_owned(),
        });
    }
    let mut how = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if bind.recursive {
        how |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree =
        open_tree(&source, "", how).map_err(HostError::path("clone the mount of", bind.source))?;
    move_mount(
        tree,
        "",
        CWD,
        stage,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(HostError::path("attach", stage))?;
    let act = || {
        restrict(bind, stage)?;
        let staged = open_path(stage)?;
        move_mount(
            &staged,
            "",
            CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(HostError::path("attach", target))
    };
    act().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = detach(stage);
    })
}

/// Sets propagation and flags of the mount at `stage` and of those beneath it.
fn restrict(bind: &Bind<'_>, stage: &Path) -> Result<(), HostError> {
    let change = |path: &Path, flags: MsFlags| {
        let changed = nix::mount::mount(NONE, path, NONE, flags, NONE);
        changed.map_err(HostError::path("restrict the mount", path))
    };
    let propagation = match bind.propagation {
        Propagation::Private => MsFlags::MS_PRIVATE,
        Propagation::FromHost => MsFlags::MS_SLAVE,
    };
    change(stage, propagation | MsFlags::MS_REC)?;
    let root = open_path(stage)?;
    let mut more = UNTRUSTED;
    more.set(MsFlags::MS_RDONLY, bind.read_only);
    for mount in mounts_beneath(stage)? {
        let beneath = mount.path.strip_prefix(stage).unwrap_or(Path::new(""));
        let opened;
        let fd = if beneath == Path::new("") {
            root.as_fd()
        } else {
            let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
            opened = openat2(&root, beneath, flags, Mode::empty(), resolve)
                .map_err(HostError::path("reach the mount", &mount.path))?;
            opened.as_fd()
        };
        let by_fd = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | mount.flags | more;
        change(&by_fd, flags)?;
    }
    Ok(())
}

/// Detaches the mount at `path` and all beneath it; nothing mounted there is no error. The path is
/// one of ours: no part of it can be changed by a guest.
pub(crate) fn detach(path: &Path) -> Result<(), HostError> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(HostError::path("unmount", path)(errno)),
    }
}

fn open_path(path: &Path) -> Result<File, HostError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd: OwnedFd =
        rustix::fs::open(path, flags, Mode::empty()).map_err(HostError::path("open", path))?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::own_mounts::in_own_mounts;

    #[test]
    fn mountinfo_is_read_with_its_escapes() {
        let text = b"22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            30 22 0:21 / /a\\040b ro,nosuid,nodev - tmpfs tmpfs rw\n\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].path, Path::new("/"));
        assert_eq!(mounts[0].flags, MsFlags::MS_RELATIME);
        assert_eq!(mounts[1].path, Path::new("/a b"));
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        assert_eq!(mounts[1].flags, flags);
    }

    #[test]
    fn an_image_of_many_layers_is_mounted() {
        in_own_mounts(|state| {
            let name = "l".repeat(72);
            let layers: Vec<_> = (0..50)
                .map(|layer| state.join(format!("{name}{layer}")))
                .collect();
            for (number, layer) in layers.iter().enumerate() {
                std::fs::create_dir(layer).unwrap();
                std::fs::write(layer.join(number.to_string()), "").unwrap();
            }
            let layers: Vec<_> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
            let data = format!("lowerdir={}", layers.join(":"));
            assert!(data.len() > overlay::OPTIONS_LEN);
            let target = state.join("target");
            std::fs::create_dir(&target).unwrap();
            let before = std::env::current_dir().unwrap();
            filesystem("overlay", "overlay", &target, UNTRUSTED, &data).unwrap();
            assert_eq!(std::fs::read_dir(&target).unwrap().count(), 50);
            assert_eq!(std::env::current_dir().unwrap(), before);
            detach(&target).unwrap();
            let error = filesystem("tmpfs", "x", &target, UNTRUSTED, &data).unwrap_err();
            assert!(error.to_string().contains("too long"), "{error}");
        });
    }

    #[test]
    fn broken_escapes_are_taken_as_they_are() {
        assert_eq!(unescape(b"a\\04"), Path::new("a\\04"));
        assert_eq!(unescape(b"\\999"), Path::new("\\999"));
    }
}
