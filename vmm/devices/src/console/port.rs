//! One port: where a guest's output goes, and where its input comes from.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use isopod_virtio::{Chain, ChainLimits, DeviceError, Rings};
use rustix::{
    event::epoll::{self, EventFlags},
    io::Errno,
    net::SendFlags,
};

use super::tail::Tail;

/// Bytes of one output buffer at most, and so what waits for a slow reader at most.
pub const MAX_OUTPUT: u32 = 32 << 10;
/// Input that one turn moves.
const INPUT: usize = 4096;
/// Buffers in one round.
const BUFFERS_PER_ROUND: usize = 64;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: MAX_OUTPUT,
    max_writable: u32::MAX,
    indirect: false,
};

/// Who is at the host's end of a port. Both descriptors must be non-blocking.
#[derive(Debug)]
pub struct Peer {
    /// Gets what the guest writes.
    pub output: OwnedFd,
    /// Gives what the guest reads, if anything.
    pub input: Option<OwnedFd>,
    /// Output that it does not take at once is thrown away, so that a guest never waits for the
    /// reader of its log.
    pub lossy: bool,
}

/// One port.
#[derive(Debug)]
pub struct Port {
    pub tail: Tail,
    peer: Option<Peer>,
    /// Output that the peer has not taken yet.
    pending: Vec<u8>,
    /// What of the peer is watched.
    watched: (EventFlags, EventFlags),
    pub written: u64,
    pub read: u64,
    pub lost: u64,
}

impl Port {
    pub fn new(tail: usize) -> Self {
        Self {
            tail: Tail::new(tail),
            peer: None,
            pending: Vec::new(),
            watched: (EventFlags::empty(), EventFlags::empty()),
            written: 0,
            read: 0,
            lost: 0,
        }
    }

    pub fn is_open(&self) -> bool {
        self.peer.is_some()
    }

    /// Another peer, or none. What the last has not taken is lost.
    pub fn set_peer(&mut self, peer: Option<Peer>, epoll: &OwnedFd) {
        self.watch(epoll, EventFlags::empty(), EventFlags::empty());
        self.lost += self.pending.len() as u64;
        self.pending.clear();
        self.peer = peer;
    }

    /// Nothing waits for a driver that is gone.
    pub fn reset(&mut self, epoll: &OwnedFd) {
        let Self {
            tail: _,
            peer: _,
            pending,
            watched: _,
            written: _,
            read: _,
            lost: _,
        } = self;
        pending.clear();
        self.watch(epoll, EventFlags::empty(), EventFlags::empty());
    }

    /// Moves what can be moved in both directions between the rings and the peer. What the peer says
    /// stays with it until the guest `listens`: a driver throws input away that nobody has asked for.
    pub fn exchange(
        &mut self,
        rings: &mut Rings<'_>,
        (rx, tx): (usize, usize),
        listens: bool,
        epoll: &OwnedFd,
    ) -> Result<(), DeviceError> {
        let gone = !self.send(rings, tx)?;
        let (waits, eof) = match listens {
            true => self.receive(rings, rx)?,
            false => (false, false),
        };
        if gone || eof {
            self.set_peer(None, epoll);
            return Ok(());
        }
        let out = match self.pending.is_empty() {
            true => EventFlags::empty(),
            false => EventFlags::OUT,
        };
        let input = if waits {
            EventFlags::IN
        } else {
            EventFlags::empty()
        };
        self.watch(epoll, input, out);
        Ok(())
    }

    /// From the guest. False when the peer is gone.
    fn send(&mut self, rings: &mut Rings<'_>, tx: usize) -> Result<bool, DeviceError> {
        let mut alive = self.flush();
        let left = rings.with(tx, LIMITS, |queue| {
            queue.quiet();
            for _ in 0..BUFFERS_PER_ROUND {
                if !self.pending.is_empty() {
                    // Looked at again when the peer takes more.
                    return Ok(false);
                }
                let Some(chain) = queue.pop()? else {
                    if queue.listen()? {
                        queue.quiet();
                        continue;
                    }
                    return Ok(false);
                };
                let head = chain.head;
                self.take(chain);
                alive &= self.flush();
                queue.complete(head, 0)?;
            }
            Ok(true)
        })?;
        if left == Some(true) {
            rings.again(tx);
        }
        Ok(alive)
    }

    fn take(&mut self, mut chain: Chain<'_>) {
        let mut bytes = vec![0; chain.readable.left().min(MAX_OUTPUT as usize)];
        // As many as are there.
        let _ = chain.readable.read(&mut bytes);
        self.tail.push(&bytes);
        self.written += bytes.len() as u64;
        if self.peer.is_some() {
            self.pending = bytes;
        }
    }

    /// Gives the peer what waits. False when it is gone.
    fn flush(&mut self) -> bool {
        let Some(peer) = &self.peer else {
            return true;
        };
        while !self.pending.is_empty() {
            match put(&peer.output, &self.pending) {
                Ok(written) => drop(self.pending.drain(..written.min(self.pending.len()))),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if peer.lossy => {
                    self.lost += self.pending.len() as u64;
                    self.pending.clear();
                }
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// To the guest: whether the peer is to be watched for more, and whether it has ended.
    fn receive(&mut self, rings: &mut Rings<'_>, rx: usize) -> Result<(bool, bool), DeviceError> {
        let Some(input) = self.peer.as_ref().and_then(|peer| peer.input.as_ref()) else {
            return Ok((false, false));
        };
        let read = &mut self.read;
        let done = rings.with(rx, LIMITS, |queue| {
            queue.quiet();
            for _ in 0..BUFFERS_PER_ROUND {
                let Some(mut chain) = queue.pop()? else {
                    if queue.listen()? {
                        queue.quiet();
                        continue;
                    }
                    return Ok((false, false));
                };
                let mut bytes = [0; INPUT];
                let room = chain.writable.left().min(INPUT);
                let given = match bytes.get_mut(..room) {
                    Some(room) if !room.is_empty() => rustix::io::read(input, room),
                    // A buffer without room.
                    Some(_) | None => {
                        queue.complete(chain.head, 0)?;
                        continue;
                    }
                };
                match given {
                    Ok(given) if given > 0 => {
                        let written = chain.writable.write(bytes.get(..given).unwrap_or_default());
                        *read += given as u64;
                        queue.complete(chain.head, written.map_or(0, |()| given as u32))?;
                    }
                    Ok(_) => {
                        queue.give_back();
                        return Ok((false, true));
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {
                        queue.give_back();
                        return Ok((true, false));
                    }
                    Err(_) => {
                        queue.give_back();
                        return Ok((false, true));
                    }
                }
            }
            Ok((true, false))
        })?;
        Ok(done.unwrap_or((false, false)))
    }

    fn watch(&mut self, epoll: &OwnedFd, input: EventFlags, output: EventFlags) {
        let Some(peer) = &self.peer else {
            return;
        };
        let (input_now, output_now) = self.watched;
        if let Some(fd) = &peer.input {
            set(epoll, fd, input_now, input);
        }
        set(epoll, &peer.output, output_now, output);
        self.watched = (input, output);
    }
}

/// Writes what is taken at once. A socket whose other end is gone is an error and never SIGPIPE; of a
/// pipe that is for the process to have ignored, as Rust programs do.
fn put(output: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::send(output, bytes, flags) {
        Err(Errno::NOTSOCK) => rustix::io::write(output, bytes),
        done => done,
    }
}

fn set(epoll: &OwnedFd, fd: &OwnedFd, now: EventFlags, wanted: EventFlags) {
    // What cannot be watched (a regular file) is always ready and never waits.
    let datum = epoll::EventData::new_u64(0);
    let _ = match (now.is_empty(), wanted.is_empty()) {
        _ if now == wanted => Ok(()),
        (true, false) => epoll::add(epoll, fd, datum, wanted),
        (false, true) => epoll::delete(epoll, fd),
        _ => epoll::modify(epoll, fd, datum, wanted),
    };
}

impl Peer {
    /// A program at the other end of a stream: `isopod debug`.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn stream(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Two descriptions of one socket, so that epoll can watch each for itself.
        let output = stream.as_fd().try_clone_to_owned()?;
        Ok(Self {
            output,
            input: Some(stream.into()),
            lossy: false,
        })
    }

    /// The reader of a log: a pipe, a file, a terminal.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn log(output: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&output, true)?;
        Ok(Self {
            output,
            input: None,
            lossy: true,
        })
    }
}
