//! Tries to get out of a jail, for the tests of the processes that it confines (feature `testing`).
//!
//! Each is one system call as whoever has taken over the process would make it: harmless where it
//! succeeds, if need be because its arguments make it fail after the walls were asked.

mod host;
pub mod jailed;
mod nobody;

use std::{
    io,
    os::{fd::RawFd, raw::c_long},
};

pub use host::at_the_host;
pub use nobody::of_nobody;

/// One system call.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// What it is meant to win.
    pub name: &'static str,
    /// Its number.
    pub number: c_long,
    /// Its errors where the walls without the filters stop it; none: only the filters do.
    pub refusals: &'static [i32],
    arguments: [usize; 6],
}

impl Attempt {
    /// Makes the call.
    ///
    /// # Errors
    /// Its own.
    pub fn make(&self) -> io::Result<i64> {
        let [a, b, c, d, e, f] = self.arguments;
        // SAFETY: attempts are made by this module only: pointers in them are to static memory that the
        // call reads, to leaked memory that nobody else uses, or null; none changes the mappings or the
        // descriptors that this program uses.
        let result = unsafe { libc::syscall(self.number, a, b, c, d, e, f) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }
}

/// What attempts are made at.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// A process of the host, in the host's numbers.
    pub process: i32,
    /// An inherited descriptor of a file.
    pub file: RawFd,
    /// An inherited descriptor of a namespace of the host's (`/proc/PID/ns/mnt`).
    pub namespace: RawFd,
}

const PATHS: &[i32] = &[libc::ENOENT, libc::EACCES];
const READ_ONLY: &[i32] = &[libc::EROFS, libc::EACCES, libc::ENOENT];
const PRIVILEGE: &[i32] = &[libc::EPERM];
/// Or a kernel that lacks the call.
const KERNEL: &[i32] = &[libc::EPERM, libc::ENOSYS];
const NOBODY: &[i32] = &[libc::ESRCH];
/// Nothing but the filter stops it.
const FILTERED: &[i32] = &[];

/// Room for the kernel's answers, for ever.
fn answer(bytes: usize) -> usize {
    Box::leak(vec![0u8; bytes].into_boxed_slice()).as_ptr() as usize
}

fn leaked<T>(value: T) -> usize {
    Box::leak(Box::new(value)) as *const T as usize
}

fn text(text: &'static std::ffi::CStr) -> usize {
    text.as_ptr() as usize
}

fn attempt(
    name: &'static str,
    number: c_long,
    arguments: &[usize],
    refusals: &'static [i32],
) -> Attempt {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(arguments) {
        *to = *from;
    }
    Attempt {
        name,
        number,
        refusals,
        arguments: all,
    }
}

const HERE: usize = libc::AT_FDCWD as usize;

/// A request to a driver, made of a descriptor that is none of its.
#[must_use]
pub fn request(name: &'static str, number: u32, targets: Targets) -> Attempt {
    let arguments = [targets.file as usize, number as usize];
    attempt(name, libc::SYS_ioctl, &arguments, FILTERED)
}
