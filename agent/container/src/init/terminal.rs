//! A pseudo terminal from the container's own devpts.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use oci_spec::runtime::Process;
use rustix::{
    fs::{Mode, OFlags, fstatfs},
    process::ioctl_tiocsctty,
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::{InitError, act};
use crate::mounts::{attach, clone_tree, paths::Root};

/// DEVPTS_SUPER_MAGIC, linux/magic.h.
const DEVPTS: u64 = 0x1cd1;

const PTMX: &str = "/dev/pts/ptmx";

/// Both ends. The master goes to the agent.
#[derive(Debug)]
pub(super) struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

/// Makes a terminal in a root filesystem that is not entered yet.
pub(super) fn open(root: &Root, process: &Process) -> Result<Terminal, InitError> {
    let master = root
        .open_device(Path::new(PTMX))
        .map_err(|e| act(e, || format!("process.terminal: open {PTMX}")))?;
    from_master(master, process)
}

/// Makes a terminal in the root filesystem of this process.
pub(super) fn open_here(process: &Process) -> Result<Terminal, InitError> {
    let master = rustix::fs::open(
        PTMX,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| act(e, || format!("process.terminal: open {PTMX}")))?;
    from_master(master, process)
}

fn from_master(master: OwnedFd, process: &Process) -> Result<Terminal, InitError> {
    let doing = || "process.terminal: make a terminal".to_owned();
    let stat = fstatfs(&master).map_err(|e| act(e, doing))?;
    if stat.f_type as u64 != DEVPTS {
        // The container could have put anything there; the agent would read and write it.
        return Err(InitError::Act {
            act: doing(),
            reason: format!("{PTMX} is not on a devpts filesystem"),
        });
    }
    unlockpt(&master).map_err(|e| act(e, doing))?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(|e| act(e, doing))?;
    if let Some(size) = process.console_size() {
        let cells = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: cells(size.height()),
            ws_col: cells(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).map_err(|e| act(e, doing))?;
    }
    Ok(Terminal { master, slave })
}

/// Binds the terminal over the container's /dev/console.
pub(super) fn bind_console(root: &Root, terminal: &Terminal) -> Result<(), InitError> {
    let doing = || "bind the terminal to /dev/console".to_owned();
    let target = root.make_file(Path::new("/dev/console"))?;
    let tree =
        clone_tree(terminal.slave.as_fd(), Path::new(""), false).map_err(|e| act(e, doing))?;
    attach(&tree, &target).map_err(|e| act(e, doing))
}

/// Makes the terminal the controlling one of this process's session.
pub(super) fn control(terminal: &Terminal) -> Result<(), InitError> {
    ioctl_tiocsctty(&terminal.slave).map_err(|e| {
        act(e, || {
            "process.terminal: become its controlling process".to_owned()
        })
    })
}
