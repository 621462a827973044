//! The system calls that this process may make once it serves. Anything else kills it.

use isopod_jail::{
    Error,
    seccomp::{Argument, Call, Check, Filter, Mode},
};

/// An argument that must have this value.
const fn is(index: u8, value: i32) -> Argument {
    Argument {
        index,
        check: Check::Equals(value.cast_unsigned()),
    }
}

/// An argument of which these bits must be clear.
const fn lacks(index: u8, bits: i32) -> Argument {
    Argument {
        index,
        check: Check::Masked {
            mask: bits.cast_unsigned(),
            value: 0,
        },
    }
}

/// An argument of which these bits must be set.
const fn has(index: u8, bits: i32) -> Argument {
    let bits = bits.cast_unsigned();
    Argument {
        index,
        check: Check::Masked {
            mask: bits,
            value: bits,
        },
    }
}

const FILES: &str = "what a guest may do with its files";
const MEMORY: &str = "the allocator, thread stacks, and guest memory from the front end";
const THREADS: &str = "threads of the vhost-user library, and the C library's own business";
const SOCKETS: &str = "the vhost-user front end, and the vsock device's streams";
const USER: &str = "files belong to the guest's user that makes them (per thread)";

/// The filter's name, in the report of a violation.
pub const NAME: &str = "file server";

/// What may be called.
pub const ALLOWED: &[Call] = &[
    Call::any(libc::SYS_openat, FILES),
    Call::any(libc::SYS_close, FILES),
    Call::any(libc::SYS_read, FILES),
    Call::any(libc::SYS_write, FILES),
    Call::any(libc::SYS_readv, FILES),
    Call::any(libc::SYS_writev, FILES),
    Call::any(libc::SYS_preadv, FILES),
    Call::any(libc::SYS_pwritev, FILES),
    Call::any(libc::SYS_statx, FILES),
    Call::any(libc::SYS_fstat, FILES),
    Call::any(libc::SYS_newfstatat, FILES),
    Call::any(libc::SYS_fstatfs, FILES),
    Call::any(libc::SYS_lseek, FILES),
    Call::any(libc::SYS_getdents64, FILES),
    Call::any(libc::SYS_fsync, FILES),
    Call::any(libc::SYS_fdatasync, FILES),
    Call::any(libc::SYS_syncfs, FILES),
    Call::any(libc::SYS_ftruncate, FILES),
    Call::any(libc::SYS_fallocate, FILES),
    Call::any(libc::SYS_copy_file_range, FILES),
    Call::any(libc::SYS_readlinkat, FILES),
    Call::any(libc::SYS_mkdirat, FILES),
    Call::any(libc::SYS_mknodat, FILES),
    Call::any(libc::SYS_symlinkat, FILES),
    Call::any(libc::SYS_linkat, FILES),
    Call::any(libc::SYS_unlinkat, FILES),
    Call::any(libc::SYS_renameat2, FILES),
    Call::any(libc::SYS_fchmodat, FILES),
    Call::any(libc::SYS_fchownat, FILES),
    Call::any(libc::SYS_utimensat, FILES),
    Call::any(libc::SYS_setxattr, FILES),
    Call::any(libc::SYS_getxattr, FILES),
    Call::any(libc::SYS_listxattr, FILES),
    Call::any(libc::SYS_removexattr, FILES),
    Call::with(libc::SYS_fcntl, &[is(1, libc::F_GETFD)], FILES),
    Call::with(libc::SYS_fcntl, &[is(1, libc::F_SETFD)], FILES),
    Call::with(libc::SYS_fcntl, &[is(1, libc::F_GETFL)], FILES),
    Call::with(
        libc::SYS_fcntl,
        &[is(1, libc::F_SETFL)],
        "O_APPEND follows the guest's",
    ),
    Call::with(libc::SYS_fcntl, &[is(1, libc::F_DUPFD_CLOEXEC)], FILES),
    Call::any(libc::SYS_setfsuid, USER),
    Call::any(libc::SYS_setfsgid, USER),
    Call::any(libc::SYS_umask, USER),
    Call::with(
        libc::SYS_unshare,
        &[is(0, libc::CLONE_FS)],
        "a thread's own umask and working directory; no namespace",
    ),
    Call::any(
        libc::SYS_fchdir,
        "into the directory of descriptors, for extended attributes",
    ),
    Call::any(
        libc::SYS_capget,
        "CAP_FSETID is laid down for writes that clear set-id bits",
    ),
    Call::any(
        libc::SYS_capset,
        "the same; more than is permitted cannot be had",
    ),
    Call::with(libc::SYS_mmap, &[lacks(2, libc::PROT_EXEC)], MEMORY),
    Call::with(libc::SYS_mprotect, &[lacks(2, libc::PROT_EXEC)], MEMORY),
    Call::any(libc::SYS_munmap, MEMORY),
    Call::any(libc::SYS_mremap, MEMORY),
    Call::any(libc::SYS_madvise, MEMORY),
    Call::any(libc::SYS_brk, MEMORY),
    Call::with(
        libc::SYS_clone,
        &[has(0, libc::CLONE_THREAD), lacks(0, libc::CLONE_NEWUSER)],
        THREADS,
    ),
    Call::any(
        libc::SYS_clone3,
        "refused with ENOSYS by the other filter, not deadly",
    ),
    Call::any(libc::SYS_set_robust_list, THREADS),
    Call::any(libc::SYS_rseq, THREADS),
    Call::any(libc::SYS_futex, THREADS),
    Call::any(libc::SYS_sched_yield, THREADS),
    Call::any(libc::SYS_sched_getaffinity, THREADS),
    Call::any(libc::SYS_sigaltstack, THREADS),
    Call::with(
        libc::SYS_rt_sigaction,
        &[is(0, libc::SIGABRT)],
        "abort(); the handler that reports violations stays",
    ),
    Call::any(libc::SYS_rt_sigprocmask, THREADS),
    Call::any(libc::SYS_rt_sigreturn, THREADS),
    Call::any(libc::SYS_restart_syscall, THREADS),
    Call::any(libc::SYS_gettid, THREADS),
    Call::any(libc::SYS_getpid, THREADS),
    Call::with(libc::SYS_tgkill, &[is(2, libc::SIGABRT)], "abort()"),
    Call::with(libc::SYS_prctl, &[is(0, libc::PR_SET_NAME)], THREADS),
    Call::any(libc::SYS_exit, THREADS),
    Call::any(libc::SYS_exit_group, THREADS),
    Call::any(libc::SYS_getrandom, "seeds of hash tables"),
    Call::any(libc::SYS_clock_gettime, THREADS),
    Call::any(libc::SYS_clock_nanosleep, THREADS),
    Call::any(libc::SYS_nanosleep, THREADS),
    Call::any(libc::SYS_poll, "the lifeline"),
    Call::any(libc::SYS_ppoll, "the lifeline"),
    Call::any(libc::SYS_epoll_create1, SOCKETS),
    Call::any(libc::SYS_epoll_ctl, SOCKETS),
    Call::any(libc::SYS_epoll_wait, SOCKETS),
    Call::any(libc::SYS_epoll_pwait, SOCKETS),
    Call::any(libc::SYS_epoll_pwait2, SOCKETS),
    Call::any(libc::SYS_eventfd2, SOCKETS),
    Call::any(libc::SYS_timerfd_create, SOCKETS),
    Call::any(libc::SYS_timerfd_settime, SOCKETS),
    Call::with(libc::SYS_socket, &[is(0, libc::AF_UNIX)], SOCKETS),
    Call::any(
        libc::SYS_connect,
        "vsock: a guest's connection to a host program",
    ),
    Call::any(libc::SYS_accept4, SOCKETS),
    Call::any(libc::SYS_recvmsg, SOCKETS),
    Call::any(libc::SYS_sendmsg, SOCKETS),
    Call::any(libc::SYS_recvfrom, SOCKETS),
    Call::any(libc::SYS_sendto, SOCKETS),
    Call::any(libc::SYS_shutdown, SOCKETS),
    Call::any(libc::SYS_getsockopt, SOCKETS),
    Call::any(libc::SYS_getpeername, SOCKETS),
    Call::with(libc::SYS_ioctl, &[is(1, libc::FIONBIO as i32)], SOCKETS),
    Call::with(libc::SYS_ioctl, &[is(1, libc::FIONREAD as i32)], SOCKETS),
];

/// clone3's flags lie in memory where a filter cannot look; with ENOSYS the C library falls back to
/// clone.
const UNKNOWN: &[Call] = &[Call::any(libc::SYS_clone3, "its flags cannot be filtered")];

/// Installs the filters on every thread there is; those that are made later inherit them.
///
/// # Errors
/// When the kernel refuses them.
pub fn install() -> Result<(), Error> {
    let filters = [
        Filter::compile("unknown calls", Mode::Deny(libc::ENOSYS), UNKNOWN)?,
        Filter::compile(NAME, Mode::Allow, ALLOWED)?,
    ];
    filters.iter().try_for_each(Filter::install_on_all_threads)
}
