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

/// How fast the kernel's phase-locked loop makes up for an offset: a sixteenth of what is left each second
/// (`2^-(2 + constant)`, Linux's kernel/time/ntp.c), which also suits corrections 2 to 30 s apart.
const TIME_CONSTANT: libc::c_long = 2;

/// Hands the wall clock's offset of `by` nanoseconds, known to `error`, to the kernel's discipline.
pub(crate) fn slew_clock(by: i64, error: u64) -> io::Result<()> {
    let mut timex = timex();
    timex.modes = libc::ADJ_NANO
        | libc::ADJ_STATUS
        | libc::ADJ_TIMECONST
        | libc::ADJ_OFFSET
        | libc::ADJ_MAXERROR
        | libc::ADJ_ESTERROR;
    timex.status = libc::STA_PLL;
    timex.constant = TIME_CONSTANT;
    timex.offset = by;
    // In microseconds, whatever the unit of the offset is.
    let error = i64::try_from(error / 1_000).unwrap_or(i64::MAX);
    timex.maxerror = by
        .saturating_abs()
        .saturating_div(1_000)
        .saturating_add(error);
    timex.esterror = error;
    adjust(&mut timex)
}

/// Sets the wall clock forward by `seconds` and a part of a second, in nanoseconds; seconds may be
/// negative.
pub(crate) fn step_clock(seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let mut timex = timex();
    timex.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    timex.time.tv_sec = seconds;
    timex.time.tv_usec = nanoseconds;
    adjust(&mut timex)
}

fn timex() -> libc::timex {
    // SAFETY: timex is plain integers, for which zero is a valid value.
    unsafe { std::mem::zeroed() }
}

fn adjust(timex: &mut libc::timex) -> io::Result<()> {
    // SAFETY: the kernel reads and writes this one structure, which outlives the call.
    if unsafe { libc::adjtimex(timex) } < 0 {
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
