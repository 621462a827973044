//! The queues of a tap device, all or none, and which of them are watched.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use isopod_memory::tap;
use rustix::event::epoll;

use super::{
    device::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6},
    pair::Pair,
};

/// A link; down when it has no pairs.
#[derive(Debug)]
pub struct Link {
    pairs: Vec<(Pair, Watched)>,
    epoll: OwnedFd,
}

type Watched = bool;

impl Link {
    /// A link that is down. `also` is watched with its queues.
    pub fn new(also: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, also, true)?;
        Ok(Self {
            pairs: Vec::new(),
            epoll,
        })
    }

    pub fn is_up(&self) -> bool {
        !self.pairs.is_empty()
    }

    /// Another tap device's queues, which are made non-blocking.
    pub fn open(&mut self, queues: Vec<OwnedFd>) -> io::Result<()> {
        for queue in &queues {
            rustix::io::ioctl_fionbio(queue, true)?;
        }
        self.close();
        self.pairs = queues.into_iter().map(|q| (Pair::new(q), false)).collect();
        Ok(())
    }

    pub fn close(&mut self) {
        self.reset();
        self.pairs.clear();
    }

    /// Without a driver, packets are left where they are.
    pub fn reset(&mut self) {
        for index in 0..self.pairs.len() {
            self.watch(index, false);
        }
        for (pair, _) in &mut self.pairs {
            pair.reset();
        }
    }

    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    pub fn pair(&mut self, index: usize) -> Option<&mut Pair> {
        self.pairs.get_mut(index).map(|(pair, _)| pair)
    }

    /// Whether a pair's packets are waited for.
    pub fn watch(&mut self, index: usize, wanted: bool) {
        if let Some((pair, watched)) = self.pairs.get_mut(index)
            && *watched != wanted
        {
            // What cannot be watched is looked at when the driver says something.
            let _ = watch(&self.epoll, pair.tap().as_fd(), wanted);
            *watched = wanted;
        }
    }

    /// Says to the tap device what the driver takes.
    pub fn set_offload(&self, features: u64) -> io::Result<()> {
        let offload = [
            (GUEST_CSUM, tap::OFFLOAD_CHECKSUM),
            (GUEST_TSO4, tap::OFFLOAD_TSO4),
            (GUEST_TSO6, tap::OFFLOAD_TSO6),
        ]
        .into_iter()
        .filter(|(feature, _)| features & feature != 0)
        .fold(0, |mask, (_, offload)| mask | offload);
        for (pair, _) in &self.pairs {
            match tap::set_offload(pair.tap().as_fd(), offload) {
                // What takes no offloads is told of none.
                Err(error) if offload != 0 => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, wanted: bool) -> io::Result<()> {
    let datum = epoll::EventData::new_u64(0);
    let done = match wanted {
        true => epoll::add(epoll, fd, datum, epoll::EventFlags::IN),
        false => epoll::delete(epoll, fd),
    };
    done.map_err(Into::into)
}
