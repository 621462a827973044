//! The system calls of each kind of thread, once the machine stands. Anything else kills the process.
//!
//! | thread | faces | may |
//! |---|---|---|
//! | `vcpu-N` | the guest's every access | run its vCPU, signal eventfds, write the console |
//! | a device's | the guest's rings | read and write what it holds, wait, signal: [`devices`], a table for each kind |
//! | `watchdog` | nobody | cut off a back end that hangs |
//! | `lifeline` | the owner | wait, end the process |
//! | main | the owner | serve the control socket, take descriptors, kick vCPUs |
//!
//! None opens, connects, executes or starts anything.

mod devices;

use std::collections::HashMap;

pub use devices::Kind;
use isopod_jail::{
    Error,
    seccomp::{Argument, Call, Check, Filter, Mode},
};

const fn is(index: u8, value: u32) -> Argument {
    Argument {
        index,
        check: Check::Equals(value),
    }
}

/// Executable memory cannot be had.
const NO_EXEC: &[Argument] = &[Argument {
    index: 2,
    check: Check::Masked {
        mask: libc::PROT_EXEC as u32,
        value: 0,
    },
}];

const MEMORY: &str = "the allocator and thread stacks";
const RUNTIME: &str = "what Rust and the C library do by themselves";
const SIGNAL: &str = "eventfds: interrupts, doorbells, wake-ups; and the log on standard error";
const ASK: &str = "libraries look at a descriptor before they use or close it";
const WAIT: &str = "waiting for eventfds, sockets and timers";
const LOCKS: &str = "locks and channels between threads";

/// Every thread's.
const COMMON: &[Call] = &[
    Call::any(libc::SYS_futex, LOCKS),
    Call::any(libc::SYS_read, SIGNAL),
    Call::any(libc::SYS_write, SIGNAL),
    Call::with(libc::SYS_mmap, NO_EXEC, MEMORY),
    Call::with(libc::SYS_mprotect, NO_EXEC, MEMORY),
    Call::any(libc::SYS_munmap, MEMORY),
    Call::any(libc::SYS_mremap, MEMORY),
    Call::any(libc::SYS_madvise, MEMORY),
    Call::any(libc::SYS_brk, MEMORY),
    Call::any(libc::SYS_close, "descriptors that are dropped"),
    Call::with(libc::SYS_fcntl, &[is(1, libc::F_GETFD as u32)], ASK),
    Call::with(libc::SYS_fcntl, &[is(1, libc::F_GETFL as u32)], ASK),
    Call::any(libc::SYS_rt_sigprocmask, RUNTIME),
    Call::any(libc::SYS_rt_sigreturn, "behind the signal that kicks vCPUs"),
    Call::any(libc::SYS_sigaltstack, "a thread's end"),
    Call::any(libc::SYS_sched_yield, RUNTIME),
    Call::any(libc::SYS_sched_getaffinity, RUNTIME),
    Call::any(libc::SYS_gettid, RUNTIME),
    Call::any(libc::SYS_getpid, RUNTIME),
    Call::any(
        libc::SYS_clock_gettime,
        "where the vDSO cannot tell the time",
    ),
    Call::any(
        libc::SYS_getrandom,
        "seeds of hash tables, and the entropy device",
    ),
    Call::any(libc::SYS_restart_syscall, RUNTIME),
    Call::with(libc::SYS_tgkill, &[is(2, libc::SIGABRT as u32)], "abort()"),
    Call::any(libc::SYS_exit, RUNTIME),
    Call::any(libc::SYS_exit_group, RUNTIME),
];

/// Numbers of KVM's requests (kernel, include/uapi/linux/kvm.h).
mod kvm {
    pub const RUN: u32 = 0xae80;
    pub const GET_REGS: u32 = 0x8090_ae81;
    pub const SET_REGS: u32 = 0x4090_ae82;
    pub const GET_SREGS: u32 = 0x8138_ae83;
    pub const SET_SREGS: u32 = 0x4138_ae84;
    pub const GET_MSRS: u32 = 0xc008_ae88;
    pub const GET_VCPU_EVENTS: u32 = 0x8040_ae9f;
    pub const SET_VCPU_EVENTS: u32 = 0x4040_aea0;
    pub const GET_XSAVE: u32 = 0x9000_aea4;
    pub const SET_XSAVE: u32 = 0x5000_aea5;
    pub const GET_XCRS: u32 = 0x8188_aea6;
    pub const KVMCLOCK_CTRL: u32 = 0xaead;
    pub const GET_MP_STATE: u32 = 0x8004_ae98;
    pub const GET_TSC_KHZ: u32 = 0xaea3;
    pub const GET_DEBUGREGS: u32 = 0x8080_aea1;
    pub const GET_LAPIC: u32 = 0x8400_ae8e;
    pub const GET_IRQCHIP: u32 = 0xc208_ae62;
    pub const GET_PIT2: u32 = 0x8070_ae9f;
    pub const GET_CLOCK: u32 = 0x8030_ae7c;
}

macro_rules! requests {
    ($reason:expr; $($name:ident),+ $(,)?) => {
        &[$(Call::with(libc::SYS_ioctl, &[is(1, kvm::$name)], $reason)),+]
    };
}

/// Running, and what `emulate` needs of a vCPU's registers.
const VCPU: &[Call] = requests!(
    "run the vCPU, complete its instructions";
    RUN, GET_REGS, SET_REGS, GET_SREGS, SET_SREGS, GET_MSRS, GET_VCPU_EVENTS, SET_VCPU_EVENTS,
    GET_XSAVE, SET_XSAVE, GET_XCRS,
);

/// The control socket.
const MAIN: &[Call] = &[
    Call::any(libc::SYS_epoll_wait, WAIT),
    Call::any(libc::SYS_epoll_pwait, WAIT),
    Call::any(libc::SYS_epoll_ctl, WAIT),
    Call::any(libc::SYS_recvfrom, "the control socket"),
    Call::any(libc::SYS_sendto, "the control socket"),
    Call::any(libc::SYS_recvmsg, "the control socket"),
    Call::any(libc::SYS_sendmsg, "the control socket"),
    Call::any(libc::SYS_writev, "the control socket"),
    Call::any(libc::SYS_shutdown, "the control socket"),
    Call::any(libc::SYS_clock_nanosleep, RUNTIME),
    Call::any(libc::SYS_getrusage, "how long a boot took"),
    Call::with(
        libc::SYS_statx,
        &[Argument {
            index: 2,
            check: Check::Masked {
                mask: libc::AT_EMPTY_PATH as u32,
                value: libc::AT_EMPTY_PATH as u32,
            },
        }],
        "whether a descriptor that came is a disk; paths lead nowhere",
    ),
    Call::any(libc::SYS_lseek, "how long a disk that came is"),
    Call::with(
        libc::SYS_getsockopt,
        &[is(1, libc::SOL_SOCKET as u32), is(2, libc::SO_TYPE as u32)],
        "whether a descriptor that came is a stream",
    ),
    Call::with(
        libc::SYS_ioctl,
        &[is(1, libc::FIONBIO as u32)],
        "a stream that came does not hold up the console's thread",
    ),
    Call::with(
        libc::SYS_fcntl,
        &[is(1, libc::F_DUPFD_CLOEXEC as u32)],
        "its two directions",
    ),
    // The first real-time signal that the C library leaves free.
    Call::with(libc::SYS_tgkill, &[is(2, 34)], "kicks vCPUs"),
];

const PAUSE: &[Call] = requests!(
    "a kernel whose clock stood still is told so";
    KVMCLOCK_CTRL,
);

/// A paused machine becomes data: by the main thread, which no guest reaches.
const SAVE: &[Call] = requests!(
    "read processors and interrupt controllers";
    GET_MP_STATE, GET_TSC_KHZ, GET_REGS, GET_SREGS, GET_XSAVE, GET_XCRS, GET_DEBUGREGS, GET_LAPIC,
    GET_MSRS, GET_VCPU_EVENTS, GET_IRQCHIP, GET_PIT2, GET_CLOCK,
);
const SAVE_FILES: &[Call] = &[
    Call::any(libc::SYS_lseek, "holes of guest memory"),
    Call::any(
        libc::SYS_pread64,
        "guest memory, and which of its pages changed",
    ),
    Call::any(libc::SYS_pwrite64, "the files of a saved machine"),
    Call::any(libc::SYS_ftruncate, "the same"),
];

const LIFELINE: &[Call] = &[
    Call::any(libc::SYS_poll, WAIT),
    Call::any(libc::SYS_ppoll, WAIT),
];

const WATCHDOG: &[Call] = &[Call::any(libc::SYS_shutdown, "a back end that hangs")];

/// The compiled filters.
#[derive(Clone)]
pub struct Filters {
    /// Of each vCPU's thread.
    pub vcpu: Filter,
    /// Of devices' threads.
    devices: HashMap<Kind, Filter>,
    /// Of the thread that watches the back ends.
    pub watchdog: Filter,
    /// Of the thread that waits for the owner's end.
    pub lifeline: Filter,
    /// Of the thread that serves the control socket.
    pub main: Filter,
}

impl Filters {
    /// Compiles all. `saves`: the machine can be saved.
    ///
    /// # Errors
    /// A table that cannot be expressed.
    pub fn compile(saves: bool) -> Result<Self, Error> {
        let filter = |name, tables: &[&[Call]]| {
            let table: Vec<Call> = tables.concat();
            Filter::compile(name, Mode::Allow, &table)
        };
        let device = |kind: Kind| {
            let tables = [&[COMMON], kind.tables()].concat();
            Ok((kind, filter(kind.name(), &tables)?))
        };
        Ok(Self {
            vcpu: filter("vcpu", &[COMMON, VCPU])?,
            devices: Kind::ALL
                .into_iter()
                .map(device)
                .collect::<Result<_, Error>>()?,
            watchdog: filter("watchdog", &[COMMON, WATCHDOG])?,
            lifeline: filter("lifeline", &[COMMON, LIFELINE])?,
            main: match saves {
                true => filter("main", &[COMMON, MAIN, PAUSE, SAVE, SAVE_FILES])?,
                false => filter("main", &[COMMON, MAIN, PAUSE])?,
            },
        })
    }

    /// Of a device's thread.
    ///
    /// # Panics
    /// Never: every kind was compiled.
    #[must_use]
    pub fn device(&self, kind: Kind) -> Filter {
        self.devices[&kind].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Call> {
        let mut all = [
            COMMON, VCPU, MAIN, PAUSE, SAVE, SAVE_FILES, WATCHDOG, LIFELINE,
        ]
        .concat();
        for kind in Kind::ALL {
            all.extend(kind.tables().concat());
        }
        all
    }

    #[test]
    fn tables_compile_and_say_why() {
        let filters = Filters::compile(true).unwrap();
        for kind in Kind::ALL {
            let _filter = filters.device(kind);
        }
        for call in all() {
            assert!(!call.reason.is_empty(), "{call:?}");
        }
    }

    #[test]
    fn no_thread_opens_executes_or_connects() {
        for forbidden in [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fork,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_ptrace,
            libc::SYS_prctl,
            libc::SYS_unshare,
            libc::SYS_mount,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
        ] {
            assert!(!all().iter().any(|call| call.number == forbidden));
        }
    }

    #[test]
    fn ioctl_and_fcntl_are_always_bound_to_a_request() {
        for call in all() {
            if [libc::SYS_ioctl, libc::SYS_fcntl].contains(&call.number) {
                assert!(call.arguments.iter().any(|a| a.index == 1), "{call:?}");
            }
        }
    }
}
