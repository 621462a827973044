//! clone3(2) in its fork-like form, with the cgroup chosen by descriptor.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// linux/sched.h; libc's constant has too few bits for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Who returned from [`fork_into`].
pub(crate) enum Side {
    Parent { child: i32 },
    Child,
}

/// Namespaces in which a child begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NewNamespaces {
    pub pid: bool,
    /// Owns the others.
    pub user: bool,
}

/// Forks; the child begins in `cgroup` (an open cgroup v2 directory) and in `new` namespaces. The caller never counts against the cgroup's limits.
///
/// Must be called by a process with one thread: the child is then an exact copy, locks included.
pub(crate) fn fork_into(cgroup: Option<BorrowedFd<'_>>, new: NewNamespaces) -> io::Result<Side> {
    let mut flags = 0;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    if new.pid {
        flags |= libc::CLONE_NEWPID as u64;
    }
    if new.user {
        flags |= libc::CLONE_NEWUSER as u64;
    }
    let args = libc::clone_args {
        flags,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `args` is a valid clone_args of the size passed. Without CLONE_VM and without a stack the
    // child continues on a copy of this stack, as after fork(2); the process has one thread, so no lock
    // of another thread is copied in a locked state.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent { child: pid as i32 }),
    }
}

/// Gives every signal its default action and unblocks all: exec would keep what is ignored (SIGPIPE by
/// Rust at start, others by whoever started the agent).
pub(crate) fn default_signals() {
    // The kernel's sigaction of x86_64 and aarch64, all zero: SIG_DFL, no flags, empty mask.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // glibc's sigaction refuses the two that it uses itself, so this is the system call. SIGKILL and
        // SIGSTOP fail, which is right.
        // SAFETY: the kernel reads 32 bytes of `default`, and SIG_DFL runs no code of ours.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    let none = 0u64;
    // SAFETY: the kernel reads eight bytes of `none`.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            size_of::<u64>(),
        );
    }
}
