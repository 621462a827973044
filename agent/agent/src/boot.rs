//! From the kernel's hand-over to a machine in which containers can be made.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, IntoRawFd as _},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
};

use isopod_container::cgroup::{CgroupError, Tree};
use isopod_protocol::paths;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with},
    process::{Resource, Rlimit, setrlimit},
};

/// Root of the cgroup tree.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
/// Where `init` puts root filesystems together.
pub(crate) const ANCHOR: &str = "/run/isopod/anchor";

/// Why the guest cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("mount {kind} on {target}: {source}")]
    Mount {
        kind: &'static str,
        target: &'static str,
        source: io::Error,
    },
    #[error("make directory {path}: {source}")]
    Directory { path: String, source: io::Error },
    #[error("bring the loopback interface up: {0}")]
    Loopback(#[source] io::Error),
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
}

const NOTHING: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// (type, target, flags, data, is it an error when the kernel has no such filesystem)
const MOUNTS: &[(&str, &str, MountFlags, &std::ffi::CStr, bool)] = &[
    ("proc", "/proc", NOTHING, c"", true),
    ("sysfs", "/sys", NOTHING, c"", true),
    ("securityfs", "/sys/kernel/security", NOTHING, c"", false),
    // Makes cgroup.memory.events count for the cgroup itself and below, as the default; delegated
    // subtrees of a container cannot move processes out of it.
    ("cgroup2", CGROUPS, NOTHING, c"nsdelegate", true),
    (
        "tmpfs",
        "/run",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        c"mode=0755",
        true,
    ),
    (
        "tmpfs",
        "/tmp",
        MountFlags::NOSUID.union(MountFlags::NODEV),
        c"mode=1777,size=1m",
        true,
    ),
];

/// Mounts /dev unless the kernel did (CONFIG_DEVTMPFS_MOUNT), and opens /dev/null for standard streams that
/// are missing: a descriptor 0, 1 or 2 of another kind would be given to a container's init by mistake.
pub(crate) fn open_standard_streams() -> io::Result<()> {
    let first = rustix::process::getpid() == rustix::process::Pid::INIT;
    if first && !Path::new("/dev/null").exists() {
        mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None)?;
    }
    loop {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // Lowest first: the kernel gives the missing numbers in order. It stays open for good.
        let _ = null.into_raw_fd();
    }
}

/// All of it, in order, after [`open_standard_streams`].
pub(crate) fn boot() -> Result<(), BootError> {
    for (kind, target, flags, data, needed) in MOUNTS {
        if let Err(source) = mount(*kind, *target, *kind, *flags, *data)
            && *needed
        {
            return Err(BootError::Mount {
                kind,
                target,
                source: source.into(),
            });
        }
    }
    for (path, mode) in [
        ("/run/isopod", 0o711),
        (paths::SHARED, 0o700),
        (ANCHOR, 0o700),
        (paths::POD_SHM, 0o1777),
    ] {
        make_directory(path, mode)?;
    }
    mount("shm", paths::POD_SHM, "tmpfs", NOTHING, Some(c"mode=1777")).map_err(|e| {
        BootError::Mount {
            kind: "tmpfs",
            target: paths::POD_SHM,
            source: e.into(),
        }
    })?;
    Tree::new(CGROUPS).delegate()?;
    lift_limits();
    bring_up(LOOPBACK).map_err(BootError::Loopback)?;
    // Every line of ours must reach the console; the default limits how often /dev/kmsg is written.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    // oom_score_adj stays as it is: the kernel never chooses PID 1, and containers would inherit a value
    // that makes them unkillable, so that a full cgroup hangs (mm/oom_kill.c, oom_unkillable_task).
    Ok(())
}

/// Limits that the kernel chooses for a whole machine by the memory that it finds at boot: tasks, open files.
/// A container is limited by its cgroup, which is charged for what it makes the kernel keep; and memory can
/// be added later. What systemd makes of them on a host.
const LIFTED: &[(&str, &str)] = &[
    ("/proc/sys/kernel/pid_max", "4194304"),
    ("/proc/sys/kernel/threads-max", "4194304"),
    ("/proc/sys/fs/file-max", "9223372036854775807"),
];

/// As containerd's own limits on a host, which its containers inherit unless `process.rlimits` says
/// otherwise: the kernel gives its first process those of a small machine.
const INHERITED: &[(Resource, Option<u64>, Option<u64>)] = &[
    (Resource::Nofile, Some(1 << 20), Some(1 << 20)),
    (Resource::Nproc, None, None),
    (Resource::Sigpending, None, None),
];

fn lift_limits() {
    for (file, value) in LIFTED {
        if let Err(e) = fs::write(file, value) {
            crate::log::error(&format!("write {value} to {file}: {e}"));
        }
    }
    for (resource, current, maximum) in INHERITED {
        let limit = Rlimit {
            current: *current,
            maximum: *maximum,
        };
        if let Err(e) = setrlimit(*resource, limit) {
            crate::log::error(&format!("set the limit {resource:?}: {e}"));
        }
    }
}

fn make_directory(path: &str, mode: u32) -> Result<(), BootError> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|source| BootError::Directory {
            path: path.to_owned(),
            source,
        })
}

/// Mounts the pod's shared directory, once. Shared, so that what one container mounts in a volume
/// can reach another that asks for it.
pub(crate) fn mount_shared(tag: &str) -> io::Result<()> {
    if is_mounted(Path::new(paths::SHARED))? {
        return Ok(());
    }
    mount(tag, paths::SHARED, "virtiofs", MountFlags::empty(), None)?;
    mount_change(
        paths::SHARED,
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )?;
    Ok(())
}

/// A mount point is on another device than its parent.
fn is_mounted(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// The loopback of the first network namespace is always interface 1. The kernel gives it 127.0.0.1 and
/// ::1 by itself.
const LOOPBACK: u32 = 1;

/// RTM_NEWLINK for an interface.
pub(crate) fn bring_up(interface: u32) -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;

    let mut message = Vec::with_capacity(32);
    // nlmsghdr: length, type, flags, sequence, port
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    // ifinfomsg: family, pad, type, index, flags, mask of the flags to change
    message.extend([0; 4]);
    message.extend(interface.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());

    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 is NETLINK_ROUTE.
        None,
    )?;
    // Handled before send returns; an error would come as an answer, which only a broken kernel gives.
    send(&socket, &message, SendFlags::empty())?;
    Ok(())
}
