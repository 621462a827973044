//! What is in a container's /dev: the default devices, the specification's, the usual links.

use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{CWD, FileType, makedev};

use super::{InitError, act};
use crate::{
    mounts::{attach, clone_tree, paths::Root},
    spec::invalid,
};

/// "Default Devices" of the runtime specification: all character devices, mode 0666. The console is
/// bound when there is a terminal; ptmx is a link into the container's devpts.
const DEFAULT: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// "Dev symbolic links" of the runtime specification, and runc's /dev/core.
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Makes all of it. In a user namespace nobody may make a node: the guest's own are bound in their places.
pub(super) fn make(
    root: &Root,
    devices: &[LinuxDevice],
    in_user_namespace: bool,
) -> Result<(), InitError> {
    for (path, major, minor) in DEFAULT {
        let listed = devices.iter().any(|d| d.path() == Path::new(path));
        if !listed && in_user_namespace {
            bind(root, Path::new(path))?;
        } else if !listed {
            root.make_node(
                Path::new(path),
                FileType::CharacterDevice,
                makedev(*major, *minor),
                0o666,
                (0, 0),
            )?;
        }
    }
    for (index, device) in devices.iter().enumerate() {
        // runc skips it too: the container's own ptmx and console take these places.
        if device.path() == Path::new("/dev/ptmx") || device.path() == Path::new("/dev/console") {
            continue;
        }
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => {
                return Err(invalid(
                    format!("linux.devices[{index}].type"),
                    "a device is one of c, b, u, p",
                )
                .into());
            }
        };
        let number = |value: i64, name: &str| {
            u32::try_from(value).map_err(|_| {
                invalid(
                    format!("linux.devices[{index}].{name}"),
                    format!("{value} is not a device number"),
                )
            })
        };
        let (major, minor) = if kind == FileType::Fifo {
            (0, 0)
        } else {
            (
                number(device.major(), "major")?,
                number(device.minor(), "minor")?,
            )
        };
        if in_user_namespace && kind != FileType::Fifo {
            bind(root, device.path())?;
            continue;
        }
        root.make_node(
            device.path(),
            kind,
            makedev(major, minor),
            device.file_mode().unwrap_or(0o666),
            (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
        )?;
    }
    for (path, to) in LINKS {
        root.make_link(Path::new(path), to)?;
    }
    if root.open(Path::new("/dev/pts/ptmx"))?.is_some() {
        root.replace_link(Path::new("/dev/ptmx"), "pts/ptmx")?;
    }
    Ok(())
}

/// Puts the guest's node of the same name in a device's place.
fn bind(root: &Root, path: &Path) -> Result<(), InitError> {
    let tree = clone_tree(CWD, path, false)
        .map_err(|e| act(e, || format!("linux.devices: open {path:?} of the guest")))?;
    let target = root.make_file(path)?;
    attach(&tree, &target).map_err(|e| act(e, || format!("linux.devices: bind {path:?}")))
}
