//! Requests on their way, side by side, when the slot's engine is io_uring.
//!
//! The kernel moves the data straight between the guest's pages and the file; the request's status is
//! written afterwards into its chain, which is then checked again.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use isopod_memory::{
    GuestMemory,
    ring::{Transfer, TransferRing},
};
use rustix::event::epoll;

use super::request::Counters;

/// Requests on their way at most.
pub const MAX_RUNNING: u16 = 64;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
}

impl Kind {
    pub(super) fn count(self, bytes: u64, counters: &mut Counters) {
        match self {
            Self::Read => {
                counters.reads += 1;
                counters.read_bytes += bytes;
            }
            Self::Write => {
                counters.writes += 1;
                counters.written_bytes += bytes;
            }
            Self::Flush => counters.flushes += 1,
        }
    }
}

/// A request on its way.
#[derive(Debug)]
pub struct Pending {
    pub kind: Kind,
    /// That it is to move.
    pub bytes: u64,
    /// The disk that was in the slot.
    pub file: Arc<File>,
}

impl Pending {
    /// It is done; the bytes that it moved.
    pub(super) fn count(&self, counters: &mut Counters) -> u64 {
        self.kind.count(self.bytes, counters);
        self.bytes
    }
}

/// All that are on their way, by the head of their chain.
pub struct Flight {
    ring: TransferRing,
    pending: Vec<Option<Pending>>,
    epoll: OwnedFd,
}

impl Flight {
    /// For a queue of `queue_size`. `also` is watched with it.
    pub fn new(queue_size: u16, also: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = TransferRing::new(MAX_RUNNING)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for fd in [ring.as_fd(), also] {
            let datum = epoll::EventData::new_u64(0);
            epoll::add(&epoll, fd, datum, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            ring,
            pending: (0..queue_size).map(|_| None).collect(),
            epoll,
        })
    }

    pub fn is_full(&self) -> bool {
        self.ring.running() >= usize::from(MAX_RUNNING)
    }

    /// Starts a transfer. False if it is to be done in another way: a driver that offers a chain
    /// again before it is answered, or a chain of too many pieces.
    pub fn start(
        &mut self,
        head: u16,
        pending: Pending,
        memory: &GuestMemory,
        transfer: Transfer<'_>,
        offset: u64,
    ) -> bool {
        let Some(place @ None) = self.pending.get_mut(usize::from(head)) else {
            return false;
        };
        let file = &pending.file;
        let started = self.ring.start(head.into(), file, memory, transfer, offset);
        if started.is_ok() {
            *place = Some(pending);
        }
        started.is_ok()
    }

    /// Lets the kernel begin with what was started. False if it could not now.
    pub fn submit(&mut self) -> bool {
        self.ring.submit().is_ok()
    }

    /// Waits until everything is done, and only to be [taken](Self::done).
    pub fn wait(&mut self) -> io::Result<()> {
        self.ring.wait()
    }

    /// Waits until everything is done and forgets it; nothing is on its way afterwards. False when it
    /// cannot be waited for.
    pub fn abandon(&mut self) -> bool {
        let waited = self.wait().is_ok();
        while self.ring.completed().is_some() {}
        self.pending.fill_with(|| None);
        waited
    }

    /// A request that is done.
    pub fn done(&mut self) -> Option<(u16, Pending, io::Result<usize>)> {
        let (head, result) = self.ring.completed()?;
        let head = u16::try_from(head).ok()?;
        let pending = self.pending.get_mut(usize::from(head))?.take()?;
        Some((head, pending, result))
    }
}

impl AsFd for Flight {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
