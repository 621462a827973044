//! The system calls of devices' threads, by kind: each table is what that kind of device does on the host
//! and nothing else. What all threads may (memory, locks, `read` and `write` of what is open) comes on top.

use isopod_jail::seccomp::{Argument, Call};

use super::{WAIT, is};

/// Devices whose threads need the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Entropy, the image as memory, the balloon: rings and memory only.
    Plain,
    /// A disk that is only read.
    ReadOnlyDisk,
    /// A disk, one request after another.
    Disk,
    /// A disk, requests side by side.
    RingDisk,
    /// A network card.
    Net,
    /// The console.
    Console,
    /// Memory that comes and goes.
    Memory,
    /// Sockets, served here.
    Vsock,
    /// What another process serves.
    VhostUser,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 9] = [
        Self::Plain,
        Self::ReadOnlyDisk,
        Self::Disk,
        Self::RingDisk,
        Self::Net,
        Self::Console,
        Self::Memory,
        Self::Vsock,
        Self::VhostUser,
    ];

    /// The filter's, for errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain device",
            Self::ReadOnlyDisk => "read-only disk",
            Self::Disk => "disk",
            Self::RingDisk => "disk with io_uring",
            Self::Net => "network card",
            Self::Console => "console",
            Self::Memory => "memory device",
            Self::Vsock => "vsock",
            Self::VhostUser => "vhost-user device",
        }
    }

    pub(super) fn tables(self) -> &'static [&'static [Call]] {
        match self {
            Self::Plain => &[EVENTS],
            Self::ReadOnlyDisk => &[EVENTS, TIMER, DISK_READS],
            Self::Disk => &[EVENTS, TIMER, DISK_READS, DISK_WRITES],
            // What the ring does not do (discard, zeroes, many pieces) is done one by one.
            Self::RingDisk => &[EVENTS, TIMER, DISK_READS, DISK_WRITES, RING],
            Self::Net => &[EVENTS, TIMER, TAP],
            Self::Console => &[EVENTS, CONSOLE],
            Self::Memory => &[EVENTS, SLOTS],
            Self::Vsock => &[EVENTS, TIMER, SOCKETS],
            Self::VhostUser => &[EVENTS, VHOST_USER],
        }
    }
}

/// Every device's: its doorbells, and its own descriptors that come and go.
const EVENTS: &[Call] = &[
    Call::any(libc::SYS_epoll_wait, WAIT),
    Call::any(libc::SYS_epoll_pwait, WAIT),
    Call::any(
        libc::SYS_epoll_ctl,
        "a device's own descriptors come and go",
    ),
];

const TIMER: &[Call] = &[Call::any(
    libc::SYS_timerfd_settime,
    "rate limits; a guest that does not answer",
)];

const DISK_READS: &[Call] = &[Call::any(
    libc::SYS_preadv,
    "from the disk into the guest's pages",
)];

const DISK_WRITES: &[Call] = &[
    Call::any(libc::SYS_pwritev, "from the guest's pages to the disk"),
    Call::any(
        libc::SYS_pwrite64,
        "zeroes, where the file system cannot make them",
    ),
    Call::any(libc::SYS_fdatasync, "flush"),
    Call::any(libc::SYS_fallocate, "discard and write zeroes"),
];

/// The ring was made before, and can only read, write and sync; no other can be made.
const RING: &[Call] = &[Call::any(
    libc::SYS_io_uring_enter,
    "start and await transfers of the ring that the thread was given",
)];

/// Packets themselves are `read` and `write`.
const TAP: &[Call] = &[
    Call::with(
        libc::SYS_ioctl,
        &[is(1, 0x4004_54d0)],
        "TUNSETOFFLOAD: what the driver takes",
    ),
    Call::with(
        libc::SYS_ioctl,
        &[is(1, 0x4004_54d8)],
        "TUNSETVNETHDRSZ: of a tap device that has come",
    ),
    Call::with(
        libc::SYS_ioctl,
        &[is(1, libc::FIONBIO as u32)],
        "a tap device that has come does not hold up the thread",
    ),
];

const CONSOLE: &[Call] = &[Call::any(
    libc::SYS_sendto,
    "to the log's reader and the debugging person, never raising SIGPIPE",
)];

const SLOTS: &[Call] = &[Call::with(
    libc::SYS_ioctl,
    &[is(1, 0x4020_ae46)],
    "KVM_SET_USER_MEMORY_REGION: chunks appear and vanish",
)];

const UNIX: &[Argument] = &[is(0, libc::AF_UNIX as u32)];

const SOCKETS: &[Call] = &[
    Call::any(libc::SYS_accept4, "host programs come"),
    Call::with(
        libc::SYS_ioctl,
        &[is(1, libc::FIONBIO as u32)],
        "none holds up the others",
    ),
    Call::with(
        libc::SYS_socketpair,
        UNIX,
        "the guest's connections, of which one end is handed over",
    ),
    Call::any(libc::SYS_recvfrom, "where a program wants to"),
    Call::any(libc::SYS_recvmsg, "into the guest's pages"),
    Call::any(
        libc::SYS_sendmsg,
        "from the guest's pages; handing a connection over",
    ),
    Call::any(libc::SYS_sendto, "the answer to a program"),
    Call::any(libc::SYS_shutdown, "a direction ends"),
];

const VHOST_USER: &[Call] = &[
    Call::any(libc::SYS_poll, WAIT),
    Call::any(libc::SYS_ppoll, WAIT),
    Call::any(libc::SYS_sendmsg, "to the back end"),
    Call::any(libc::SYS_recvmsg, "from the back end"),
    Call::any(libc::SYS_recvfrom, "whether the back end is still there"),
    Call::any(libc::SYS_sendto, "to the back end"),
    Call::with(
        libc::SYS_fcntl,
        &[is(1, libc::F_DUPFD_CLOEXEC as u32)],
        "doorbells for the back end",
    ),
    Call::any(
        libc::SYS_eventfd2,
        "a queue's error descriptor for the back end",
    ),
];
