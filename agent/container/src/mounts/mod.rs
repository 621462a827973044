//! Putting a root filesystem together, in `init`, before pivot_root.
//!
//! Everything goes through descriptors: a destination is walked with `openat2(RESOLVE_IN_ROOT)` from the
//! root filesystem's directory, so that no symbolic link in an image leads a mount out of it.

mod copy_up;
pub(crate) mod options;
pub(crate) mod paths;

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use oci_spec::runtime::Mount;
use rustix::{
    fs::{CWD, FileType, fstat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use self::{options::MountOptions, paths::Root};
use crate::{
    init::{InitError, act},
    spec::{invalid, unsupported},
    sys::mount_attr::{MountAttr, map_ids, mount_setattr},
};

/// What of a mount had to be made with the guest's own rights, before a user namespace was entered.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// The detached mount: its source cannot be opened later.
    pub tree: Option<OwnedFd>,
    /// The user namespace that maps its ids.
    pub users: Option<OwnedFd>,
}

/// Opens what the rights of the guest's root are needed for: sources of binds, and sysfs, which belongs
/// to the network namespace.
pub(crate) fn prepare(index: usize, mount: &Mount) -> Result<Option<OwnedFd>, InitError> {
    let words = mount.options().as_deref().unwrap_or_default();
    let options = parse_options(index, words)?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    if options.is_bind() || kind == "bind" {
        return clone_source(index, mount, options.bind.unwrap_or(false)).map(Some);
    }
    if kind == "sysfs" {
        return new_filesystem(index, kind, mount, &options).map(Some);
    }
    Ok(None)
}

fn parse_options(index: usize, words: &[String]) -> Result<MountOptions, InitError> {
    options::parse(words).map_err(|refused| {
        let what = format!("option {:?}", refused.0);
        unsupported(format!("mounts[{index}].options"), what).into()
    })
}

/// Mounts `mounts[index]` in the root filesystem. Returns whether it must be made read-only at the end
/// ([`make_read_only`]), because more is to be made in it.
pub(crate) fn mount(
    root: &Root,
    index: usize,
    mount: &Mount,
    prepared: Prepared,
) -> Result<bool, InitError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let words = mount.options().as_deref().unwrap_or_default();
    let mut options = parse_options(index, words)?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    let destination = mount.destination();
    let is_dev = kind == "tmpfs" && destination == Path::new("/dev");
    let delayed = is_dev && options.set & libc::MOUNT_ATTR_RDONLY != 0;
    if delayed {
        options.set &= !libc::MOUNT_ATTR_RDONLY;
    }

    let tree = if let Some(tree) = prepared.tree {
        tree
    } else if options.is_bind() || kind == "bind" {
        clone_source(index, mount, options.bind.unwrap_or(false))?
    } else {
        let kind = if kind == "cgroup" { "cgroup2" } else { kind };
        new_filesystem(index, kind, mount, &options)?
    };
    let is_directory = fstat(&tree)
        .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        .map_err(|e| act(e, || format!("look at the source of {destination:?}")))?;
    let target = if matches!(kind, "proc" | "sysfs") {
        // What is protected and written below it would land elsewhere (CVE-2019-19921, CVE-2023-27561).
        root.make_directory(destination)?;
        root.open_without_links(destination)?.ok_or_else(|| {
            let reason =
                format!("{kind} must be mounted on an ordinary directory, not through a link");
            invalid(field("destination"), reason)
        })?
    } else if is_directory {
        root.make_directory(destination)?
    } else {
        root.make_file(destination)?
    };
    if options.copy_up {
        copy_up::fill(&tree, &target).map_err(|e| {
            act(e, || {
                format!("{}: tmpcopyup of {destination:?}", field("options"))
            })
        })?;
    }
    if let Some(users) = prepared.users {
        let recursive = options.id_mapped.unwrap_or(false);
        map_ids(tree.as_fd(), users.as_fd(), recursive)
            .map_err(|e| act(e, || format!("{}: map ids", field("uidMappings"))))?;
    }
    apply_attributes(tree.as_fd(), &options)
        .map_err(|e| act(e, || format!("{}: set mount attributes", field("options"))))?;
    attach(&tree, &target)
        .map_err(|e| act(e, || format!("mounts[{index}]: mount on {destination:?}")))?;
    for (propagation, recursive) in &options.propagation {
        let attr = MountAttr {
            propagation: *propagation,
            ..MountAttr::default()
        };
        mount_setattr(tree.as_fd(), attr, *recursive)
            .map_err(|e| act(e, || format!("{}: set propagation", field("options"))))?;
    }
    Ok(delayed)
}

/// A detached copy of the source's mount.
fn clone_source(index: usize, mount: &Mount, recursive: bool) -> Result<OwnedFd, InitError> {
    let source = mount.source().as_deref().ok_or_else(|| {
        invalid(
            format!("mounts[{index}].source"),
            "a bind mount needs a source",
        )
    })?;
    clone_tree(CWD, source, recursive)
        .map_err(|e| act(e, || format!("mounts[{index}].source: open {source:?}")))
}

/// A detached copy of the mount at `path`.
pub(crate) fn clone_tree(
    from: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_NO_AUTOMOUNT;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    open_tree(from, path, flags)
}

fn new_filesystem(
    index: usize,
    kind: &str,
    mount: &Mount,
    options: &MountOptions,
) -> Result<OwnedFd, InitError> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| match e {
        rustix::io::Errno::NODEV => unsupported(
            format!("mounts[{index}].type"),
            format!("filesystem {kind:?}, which the guest kernel has not,"),
        )
        .into(),
        e => act(e, || format!("mounts[{index}].type: open {kind:?}")),
    })?;
    let refused = |option: &str, e: rustix::io::Errno| {
        let field = format!("mounts[{index}].options");
        let reason = kernel_words(&context).unwrap_or_else(|| io::Error::from(e).to_string());
        InitError::from(invalid(
            field,
            format!("{kind} refuses option {option:?}: {reason}"),
        ))
    };
    if let Some(source) = mount.source().as_deref() {
        fsconfig_set_string(&context, "source", source)
            .map_err(|e| act(e, || format!("mounts[{index}].source: set {source:?}")))?;
    }
    for flag in &options.fs_flags {
        fsconfig_set_flag(&context, *flag).map_err(|e| refused(flag, e))?;
    }
    // One word may hold several parameters, as mount(8) allows.
    for option in options.data.iter().flat_map(|word| word.split(',')) {
        let set = match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None if option.is_empty() => Ok(()),
            None => fsconfig_set_flag(&context, option),
        };
        set.map_err(|e| refused(option, e))?;
    }
    fsconfig_create(&context).map_err(|e| {
        let reason = kernel_words(&context).unwrap_or_else(|| io::Error::from(e).to_string());
        InitError::Act {
            act: format!("mounts[{index}]: make a {kind} filesystem"),
            reason,
        }
    })?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(|e| act(e, || format!("mounts[{index}]: make a {kind} mount")))
}

/// The kernel's own explanation, which it leaves to be read from the filesystem context.
fn kernel_words(context: &OwnedFd) -> Option<String> {
    let mut file = File::from(context.try_clone().ok()?);
    let mut line = [0; 512];
    let length = file.read(&mut line).ok()?;
    let words = String::from_utf8_lossy(line.get(..length)?)
        .trim()
        .to_owned();
    // "e text": the first letter is a severity.
    Some(words.get(2..)?.to_owned())
}

fn apply_attributes(tree: BorrowedFd<'_>, options: &MountOptions) -> io::Result<()> {
    if options.set != 0 || options.clear != 0 {
        let attr = MountAttr {
            set: options.set,
            clear: options.clear,
            propagation: 0,
        };
        mount_setattr(tree, attr, false)?;
    }
    if options.recursive_set != 0 || options.recursive_clear != 0 {
        let attr = MountAttr {
            set: options.recursive_set,
            clear: options.recursive_clear,
            propagation: 0,
        };
        mount_setattr(tree, attr, true)?;
    }
    Ok(())
}

/// Puts a detached tree on what `target` is open on.
pub(crate) fn attach(tree: &OwnedFd, target: &OwnedFd) -> rustix::io::Result<()> {
    move_mount(
        tree,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Makes the mount that `mount` is open on read-only, not those below it.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    mount_setattr(mount, attr, false)
}

/// A new tmpfs, detached.
pub(crate) fn new_tmpfs(parameters: &[(&str, &str)]) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in parameters {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// Hides each path: a file behind /dev/null, a directory behind an empty read-only tmpfs. What does not
/// exist needs no hiding.
pub(crate) fn mask(root: &Root, paths: &[String], null: &OwnedFd) -> Result<(), InitError> {
    for path in paths {
        let Some(target) = root.open(Path::new(path))? else {
            continue;
        };
        let doing = || format!("linux.maskedPaths: hide {path:?}");
        let stat = fstat(&target).map_err(|e| act(e, doing))?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let cover = new_tmpfs(&[("mode", "0755"), ("nr_inodes", "1"), ("size", "4k")])
                .map_err(|e| act(e, doing))?;
            make_read_only(cover.as_fd()).map_err(|e| act(e, doing))?;
            cover
        } else {
            clone_tree(null.as_fd(), Path::new(""), false).map_err(|e| act(e, doing))?
        };
        attach(&cover, &target).map_err(|e| act(e, doing))?;
    }
    Ok(())
}

/// Makes each path a read-only mount. What does not exist needs no protection.
pub(crate) fn protect(root: &Root, paths: &[String]) -> Result<(), InitError> {
    for path in paths {
        let Some(target) = root.open(Path::new(path))? else {
            continue;
        };
        let doing = || format!("linux.readonlyPaths: protect {path:?}");
        let tree = clone_tree(target.as_fd(), Path::new(""), true).map_err(|e| act(e, doing))?;
        make_read_only(tree.as_fd()).map_err(|e| act(e, doing))?;
        attach(&tree, &target).map_err(|e| act(e, doing))?;
    }
    Ok(())
}
