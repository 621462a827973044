//! What PID 1 needs and has no safe wrapper: adjtimex(2), for it keeps the clock, kill(2) with real-time
//! signals, descriptors that the runtime watches, and the entry itself.
#![allow(unsafe_code)]

use std::{io, os::fd::OwnedFd};

use isopod_container::Launch;
use tokio::io::unix::AsyncFd;

/// Takes the place of the entry that Rust makes: its runtime opens /dev/null for missing standard streams
/// before anything of ours runs, and aborts when there is none. The kernel starts PID 1 without a console
/// and with an empty /dev.
#[cfg(not(test))]
// SAFETY: the one `main` of the program, with C's signature; std reads the arguments by itself.
#[unsafe(no_mangle)]
extern "C" fn main(_: libc::c_int, _: *const *const libc::c_char) -> libc::c_int {
    libc::c_int::from(crate::start())
}

/// Makes the clock run up to 500 ppm faster or slower until `offset_us` microseconds are made up for;
/// replaces a correction that is still going on (adjtime(3)'s mode).
pub(crate) fn slew_clock(offset_us: i64) -> io::Result<()> {
    // SAFETY: timex is plain integers, for which zero is a valid value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    timex.modes = libc::ADJ_OFFSET_SINGLESHOT;
    timex.offset = offset_us;
    // SAFETY: the kernel reads and writes this one structure, which outlives the call.
    let result = unsafe { libc::adjtimex(&raw mut timex) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// kill(2) with a signal that has no name.
pub(crate) fn kill_realtime(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers; the caller knows the process.
    if unsafe { libc::kill(pid, signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Registers a descriptor with the runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stands for one open descriptor until it is dropped, which AsyncFd does itself.
    Ok(unsafe { AsyncFd::register(fd)? })
}

/// Registers a process in the making with the runtime.
pub(crate) fn watch_launch(launch: Launch) -> io::Result<AsyncFd<Launch>> {
    // SAFETY: a Launch owns its one descriptor and never replaces it.
    Ok(unsafe { AsyncFd::register(launch)? })
}
