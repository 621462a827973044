//! A container's first process, from the gate to exec.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::Write as _,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::{fchdir, pivot_root, sethostname, setsid},
};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::{MountPropagationFlags, mount_change},
};

use super::{
    Handed, InitError, act, attributes, devices,
    hooks::Hooks,
    process::{self, Rest},
    terminal, users,
};
use crate::{
    job::Join,
    mounts::{self, Prepared, attach, clone_tree, make_read_only, new_tmpfs, options, paths::Root},
    spec::{invalid, joins, namespace},
    sys::mount_attr::{MountAttr, mount_setattr},
};

/// Does the specification ask for a pid namespace of the container's own?
pub(super) fn wants_pid_namespace(spec: &Spec) -> bool {
    wants_new(spec, LinuxNamespaceType::Pid)
}

fn wants_new(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    spec.linux()
        .as_ref()
        .is_some_and(|linux| namespace(linux, kind).is_some() && !joins(linux, kind))
}

/// Builds the container around this process and executes its command.
pub(super) fn run(spec: &Spec, anchor: &Path, mut handed: Handed) -> Result<Infallible, InitError> {
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| invalid("process", "a container needs a process"))?;
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| invalid("linux", "a mount namespace is required"))?;
    setsid().map_err(|e| act(e, || "begin a session".to_owned()))?;
    let inside = users::wanted(spec);
    if inside {
        users::become_root()?;
    }
    let hooks = Hooks::of(spec, handed.guest_pid);
    enter_namespaces(spec, &handed)?;

    let trees = std::mem::take(&mut handed.trees);
    let root = attach_root(spec, linux, anchor, trees.root)?;
    let read_only_mounts = fill_root(spec, linux, &root, trees.mounts)?;
    let console = handed
        .streams
        .is_none()
        .then(|| terminal::open(&root, process))
        .transpose()?;
    if let Some(console) = &console {
        terminal::bind_console(&root, console)?;
    }
    set_names(spec)?;
    set_sysctls(linux, |name| !(inside && is_network(name)))?;
    // Paths in /proc: the container's, so after its mounts; and still reachable without its links.
    mounts::protect(&root, linux.readonly_paths().as_deref().unwrap_or_default())?;
    // Not a detached clone: before Linux 6.15 those cannot be cloned again, one per masked file.
    let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| act(e, || "open /dev/null".to_owned()))?;
    mounts::mask(
        &root,
        linux.masked_paths().as_deref().unwrap_or_default(),
        &null,
    )?;
    for path in read_only_mounts {
        if let Some(mount) = root.open(&path)? {
            make_read_only(mount.as_fd())
                .map_err(|e| act(e, || format!("make {path:?} read-only")))?;
        }
    }
    // runc makes a missing working directory of a container, though not of an exec.
    root.make_directory(process.cwd())
        .map_err(|error| InitError::Command(format!("error during container init: {error}")))?;
    enter_root(&root)?;
    hooks.run_create(process)?;
    finish_root(spec, linux, &root)?;
    attributes::set_personality(linux.personality().as_ref())?;
    let rest = Rest {
        profile: linux.seccomp().as_ref(),
        hooks: &hooks,
        in_user_namespace: inside,
    };
    process::execute(process, rest, handed, console)
}

/// Makes a time namespace with its offsets; the next child is in it (time_namespaces(7)).
pub(super) fn make_time_namespace(spec: &Spec) -> Result<(), InitError> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    if !wants_new(spec, LinuxNamespaceType::Time) {
        return Ok(());
    }
    unshare(CloneFlags::from_bits_retain(libc::CLONE_NEWTIME))
        .map_err(|e| act(e, || "make a time namespace".to_owned()))?;
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let doing = || format!("linux.timeOffsets[{clock:?}]: set");
        let line = format!(
            "{clock} {} {}\n",
            offset.secs().unwrap_or(0),
            offset.nanosecs().unwrap_or(0)
        );
        fs::write("/proc/self/timens_offsets", line).map_err(|e| act(e, doing))?;
    }
    Ok(())
}

fn enter_namespaces(spec: &Spec, handed: &Handed) -> Result<(), InitError> {
    // A cgroup namespace always: without one the container would see the guest's whole tree.
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    if wants_new(spec, LinuxNamespaceType::Ipc) {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    if wants_new(spec, LinuxNamespaceType::Uts) {
        flags |= CloneFlags::CLONE_NEWUTS;
    }
    unshare(flags).map_err(|e| act(e, || format!("make namespaces {flags:?}")))?;
    for (join, fd) in &handed.joins {
        let kind = match join {
            Join::Ipc => CloneFlags::CLONE_NEWIPC,
            Join::Uts => CloneFlags::CLONE_NEWUTS,
            // Entered before this process was made.
            Join::Pid | Join::User | Join::Everything => continue,
        };
        setns(fd, kind).map_err(|e| act(e, || format!("join the pod's {join:?} namespace")))?;
    }
    Ok(())
}

/// Clones the root filesystem's tree onto a private tmpfs of this mount namespace: pivot_root wants a
/// parent mount that nobody shares.
fn attach_root(
    spec: &Spec,
    linux: &Linux,
    anchor: &Path,
    prepared: Option<OwnedFd>,
) -> Result<Root, InitError> {
    let path = spec
        .root()
        .as_ref()
        .map(|root| root.path().clone())
        .ok_or_else(|| invalid("root", "a container needs a root filesystem"))?;
    let propagation = linux
        .rootfs_propagation()
        .as_deref()
        .and_then(options::propagation)
        .map_or(MountPropagationFlags::DOWNSTREAM, |(flag, _)| {
            propagation_flags(flag)
        });
    mount_change("/", propagation | MountPropagationFlags::REC)
        .map_err(|e| act(e, || "linux.rootfsPropagation: set it on /".to_owned()))?;

    let tree = match prepared {
        Some(tree) => tree,
        None => clone_tree(CWD, &path, true)
            .map_err(|e| act(e, || format!("root.path: open {path:?}")))?,
    };
    let private = MountAttr {
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    let doing = || "put the root filesystem in its place".to_owned();
    let open = |path: &Path| {
        rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let base = new_tmpfs(&[("mode", "0700"), ("size", "4k")]).map_err(|e| act(e, doing))?;
    let place = open(anchor).map_err(|e| act(e, || format!("open {anchor:?}")))?;
    attach(&base, &place).map_err(|e| act(e, doing))?;
    mount_setattr(base.as_fd(), private, false).map_err(|e| act(e, doing))?;
    attach(&tree, &base).map_err(|e| act(e, doing))?;
    mount_setattr(tree.as_fd(), private, false).map_err(|e| act(e, doing))?;
    // `tree` was opened by open_tree and so is O_PATH on the root of the mount, now attached.
    Ok(Root::new(tree))
}

fn propagation_flags(flag: u64) -> MountPropagationFlags {
    match flag {
        libc::MS_SHARED => MountPropagationFlags::SHARED,
        libc::MS_PRIVATE => MountPropagationFlags::PRIVATE,
        // Unbindable is the container's root only: here it must still be cloned.
        _ => MountPropagationFlags::DOWNSTREAM,
    }
}

/// Mounts and devices. Answers what must be made read-only at the end.
fn fill_root(
    spec: &Spec,
    linux: &Linux,
    root: &Root,
    prepared: Vec<Prepared>,
) -> Result<Vec<std::path::PathBuf>, InitError> {
    let mut delayed = Vec::new();
    let mut own_dev = true;
    let mut prepared = prepared.into_iter();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        if mounts::mount(root, index, mount, prepared.next().unwrap_or_default())? {
            delayed.push(mount.destination().clone());
        }
        let bind = mount.typ().as_deref() == Some("bind")
            || mount
                .options()
                .iter()
                .flatten()
                .any(|option| option == "bind" || option == "rbind");
        if mount.destination() == Path::new("/dev") && bind {
            // Someone else's /dev: nothing is made in it.
            own_dev = false;
        }
    }
    if own_dev {
        devices::make(
            root,
            linux.devices().as_deref().unwrap_or_default(),
            users::wanted(spec),
        )?;
    }
    Ok(delayed)
}

fn set_names(spec: &Spec) -> Result<(), InitError> {
    if let Some(name) = spec.hostname().as_deref().filter(|name| !name.is_empty()) {
        sethostname(name).map_err(|e| act(e, || format!("hostname: set {name:?}")))?;
    }
    if let Some(name) = spec.domainname().as_deref().filter(|name| !name.is_empty()) {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|e| act(e, || format!("domainname: set {name:?}")))?;
    }
    Ok(())
}

/// Is it a parameter of the network namespace, which the guest's containers share?
pub(super) fn is_network(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

/// Through the guest's /proc: the container may have none. The kernel picks the namespace by the
/// writing process.
pub(super) fn set_sysctls(linux: &Linux, meant: impl Fn(&str) -> bool) -> Result<(), InitError> {
    let base = rustix::fs::open(
        "/proc/sys",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| act(e, || "open /proc/sys".to_owned()))?;
    let all = linux.sysctl().iter().flatten();
    let mut sorted: Vec<_> = all.filter(|(name, _)| meant(name)).collect();
    sorted.sort();
    for (name, value) in sorted {
        // As sysctl(8): the first separator decides which character separates.
        let dotted = name.find(['.', '/']).and_then(|at| name.get(at..=at)) == Some(".");
        let path: String = if dotted {
            name.chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    c => c,
                })
                .collect()
        } else {
            name.clone()
        };
        let doing = || format!("linux.sysctl[{name:?}]: write {value:?}");
        let file = rustix::fs::openat2(
            &base,
            &path,
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
            rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS,
        )
        .map_err(|e| act(e, doing))?;
        File::from(file)
            .write_all(value.as_bytes())
            .map_err(|e| act(e, doing))?;
    }
    Ok(())
}

/// pivot_root(2)'s own example: the old root is stacked on the new one and taken off again, so no
/// directory for it is needed in a root filesystem that may be read-only.
fn enter_root(root: &Root) -> Result<(), InitError> {
    let doing = || "pivot_root".to_owned();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).map_err(|e| act(e, doing))?;
    fchdir(root).map_err(|e| act(e, doing))?;
    pivot_root(".", ".").map_err(|e| act(e, doing))?;
    // Taking mounts off here must not reach the guest's own namespace. By the old root's descriptor:
    // "." would be the new root, whose mounts keep the propagation that was asked for.
    fchdir(&old).map_err(|e| act(e, doing))?;
    mount_change(
        ".",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(|e| act(e, doing))?;
    umount2(".", MntFlags::MNT_DETACH)
        .map_err(|e| act(e, || "leave the guest's root".to_owned()))?;
    std::env::set_current_dir("/").map_err(|e| act(e, doing))
}

fn finish_root(spec: &Spec, linux: &Linux, root: &Root) -> Result<(), InitError> {
    if let Some((flag, recursive)) = linux
        .rootfs_propagation()
        .as_deref()
        .and_then(options::propagation)
        && matches!(flag, libc::MS_SHARED | libc::MS_UNBINDABLE)
    {
        let attr = MountAttr {
            propagation: flag,
            ..MountAttr::default()
        };
        mount_setattr(root.as_fd(), attr, recursive)
            .map_err(|e| act(e, || "linux.rootfsPropagation: set it".to_owned()))?;
    }
    if spec.root().as_ref().and_then(|root| root.readonly()) == Some(true) {
        make_read_only(root.as_fd()).map_err(|e| act(e, || "root.readonly: remount".to_owned()))?;
    }
    Ok(())
}

/// Opens a file of the guest's /proc for the calling process, to be written after the roots changed.
pub(super) fn own_proc(file: &str) -> Result<OwnedFd, InitError> {
    fs::OpenOptions::new()
        .write(true)
        .open(Path::new("/proc/self").join(file))
        .map(OwnedFd::from)
        .map_err(|e| act(e, || format!("open /proc/self/{file}")))
}
