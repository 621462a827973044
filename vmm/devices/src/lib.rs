//! virtio devices, a file or a folder each, apart from the transport that reaches their queues.
//!
//! Place in the flow: the monitor puts them behind virtio-mmio; `fs` puts `vsock` behind vhost-user
//! for QEMU. Imports `virtio`, `memory`, `config`.
//!
//! A device's thread calls of the system, besides what every such thread does (`epoll_wait`,
//! `epoll_ctl`, `read` and `write` of eventfds, `futex`, the allocator's `mmap`, `munmap`, `madvise`,
//! `brk`): for whoever writes its filter.
//!
//! | device | calls |
//! |---|---|
//! | `rng` | `getrandom` |
//! | `console` | `read`, `sendto`, `write` of its peers |
//! | `balloon`, `mem` | `madvise` |
//! | `pmem` | none |
//! | `blk` | `preadv`, `pwritev`, `fdatasync`, `fallocate`, `pwrite64`, `timerfd_settime`; side by side also `io_uring_enter` |
//! | `net` | `read`, `write` of its tap queues, `ioctl` (`TUNSETOFFLOAD`, `FIONBIO`), `timerfd_settime` |
//! | `vsock` | `accept4`, `ioctl` (`FIONBIO`), `recvmsg`, `sendmsg`, `recvfrom`, `shutdown`, `timerfd_settime`; with a directory `socket` and `connect`, with channels `socketpair` |
//! | `vhost_user` | `sendmsg`, `recvmsg`, `recvfrom` |
//!
//! What another thread makes and hands over (a disk, a link, a peer) is closed by the device's thread.
#![forbid(unsafe_code)]

pub mod balloon;
pub mod blk;
pub mod console;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod rate;
pub mod rng;
mod timer;
pub mod vhost_user;
pub mod vsock;
