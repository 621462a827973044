//! The host's side: epoll, the timer, and sockets of host programs to connect to.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Instant,
};

use isopod_memory::{GuestSlice, socket};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType,
    },
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::seam::{ConnectError, FIRST_RESERVED_PORT, Host, HostStream, Key, Readiness, Token};

/// Events taken from epoll at a time.
pub const EVENTS: usize = 128;

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A stream of a connection.
    Stream(Token),
    /// A host program that is still to say where it wants to.
    Caller(u32),
    /// The listening socket.
    Listener,
    /// The timer.
    Timer,
}

// High halves of epoll's data that no connection has, as no connection has such a host port.
const DETACHED: u32 = FIRST_RESERVED_PORT;
const CALLER: u32 = FIRST_RESERVED_PORT + 1;
const LISTENER: u32 = FIRST_RESERVED_PORT + 2;
const TIMER: u32 = FIRST_RESERVED_PORT + 3;

impl Source {
    fn to_data(self) -> EventData {
        let (high, low) = match self {
            Self::Stream(Token::Connection(key)) => (key.host_port, key.guest_port),
            Self::Stream(Token::Detached(id)) => (DETACHED, id),
            Self::Caller(id) => (CALLER, id),
            Self::Listener => (LISTENER, 0),
            Self::Timer => (TIMER, 0),
        };
        EventData::new_u64(u64::from(high) << 32 | u64::from(low))
    }

    fn from_data(data: EventData) -> Self {
        let (high, low) = ((data.u64() >> 32) as u32, data.u64() as u32);
        match high {
            DETACHED => Self::Stream(Token::Detached(low)),
            CALLER => Self::Caller(low),
            LISTENER => Self::Listener,
            TIMER => Self::Timer,
            host_port => Self::Stream(Token::Connection(Key {
                host_port,
                guest_port: low,
            })),
        }
    }
}

/// epoll over everything on the host that a device waits for.
#[derive(Debug)]
pub struct UnixHost {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the timer will fire.
    timer_at: Option<Instant>,
    way: Way,
}

/// How the guest's connections reach programs of the host.
#[derive(Debug)]
pub enum Way {
    /// By the sockets `vsock_P` of a directory.
    Directory(PathBuf),
    /// By one end of a socket pair, sent with one byte over the channel that belongs to the port.
    Channels(BTreeMap<u32, OwnedFd>),
}

impl UnixHost {
    /// Watches nothing but its timer yet.
    ///
    /// # Errors
    /// The system's, with what was attempted.
    pub fn new(way: Way) -> Result<Self, (&'static str, io::Error)> {
        let attempt = |act: &'static str| move |errno: Errno| (act, io::Error::from(errno));
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(attempt("create an epoll"))?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(attempt("create a timer"))?;
        let host = Self {
            epoll,
            timer,
            timer_at: None,
            way,
        };
        host.add(Source::Timer, &host.timer, EventFlags::IN)
            .map_err(|error| ("watch a timer", error))?;
        Ok(host)
    }

    fn add(&self, source: Source, fd: impl AsFd, events: EventFlags) -> io::Result<()> {
        // Edge-triggered throughout: what cannot be dealt with yet is remembered, not reported again.
        epoll::add(&self.epoll, fd, source.to_data(), events | EventFlags::ET).map_err(Into::into)
    }

    /// Has `fd` reported when it can be read.
    ///
    /// # Errors
    /// The system's.
    pub fn watch_readable(&self, source: Source, fd: impl AsFd) -> io::Result<()> {
        self.add(source, fd, EventFlags::IN | EventFlags::RDHUP)
    }

    /// Has `fd` reported no more. Closing it does the same.
    pub fn forget(&self, fd: impl AsFd) {
        // It may not have been watched.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// What became ready since the last call, up to [`EVENTS`].
    pub fn poll(&self) -> Vec<(Source, Readiness)> {
        let empty = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [empty; EVENTS];
        let count = loop {
            match epoll::wait(&self.epoll, &mut events, Some(&Timespec::default())) {
                Err(Errno::INTR) => {}
                Ok(count) => break count,
                // Only a descriptor that is no epoll fails; there is nothing to report then.
                Err(_) => break 0,
            }
        };
        events
            .iter()
            .take(count)
            .map(|event| {
                // Fields of a packed struct, copied out.
                let (flags, data) = (event.flags, event.data);
                let over = flags.intersects(EventFlags::HUP | EventFlags::ERR);
                let readiness = Readiness {
                    readable: over || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                    writable: flags.contains(EventFlags::OUT),
                    hung_up: flags.contains(EventFlags::HUP),
                };
                (Source::from_data(data), readiness)
            })
            .collect()
    }

    /// Has the timer reported at `at` (at once if that has passed) or never; replaces what was set
    /// before.
    pub fn set_timer(&mut self, at: Option<Instant>, now: Instant) {
        if self.timer_at == at {
            return;
        }
        self.timer_at = at;
        let value = at.map_or_else(Timespec::default, |at| {
            let delay = at.saturating_duration_since(now);
            Timespec {
                tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
                // All zero would mean never.
                tv_nsec: delay.subsec_nanos().max(1).into(),
            }
        });
        let timer = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        // Fails only for a descriptor that is no timer.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer);
    }

    /// The timer has fired: the same time may be set again. Its descriptor need not be read, as it is
    /// watched for edges.
    pub fn timer_fired(&mut self) {
        self.timer_at = None;
    }
}

impl AsFd for UnixHost {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Host for UnixHost {
    type Stream = UnixStream;

    fn connect(&mut self, port: u32) -> Result<UnixStream, ConnectError> {
        let attempt = match &self.way {
            Way::Directory(directory) => connect_to(&directory.join(format!("vsock_{port}"))),
            Way::Channels(channels) => match channels.get(&port) {
                Some(channel) => hand_over(channel),
                None => return Err(ConnectError::Refused),
            },
        };
        attempt.map_err(|errno| match errno {
            // What a non-blocking socket says when the listen queue or the channel is full.
            Errno::AGAIN => ConnectError::Busy,
            _ => ConnectError::Refused,
        })
    }

    fn watch(&mut self, token: Token, stream: &UnixStream, room: bool) -> io::Result<()> {
        self.add(Source::Stream(token), stream, interest(room))
    }

    fn rewatch(&mut self, token: Token, stream: &UnixStream, room: bool) -> io::Result<()> {
        let data = Source::Stream(token).to_data();
        epoll::modify(&self.epoll, stream, data, interest(room) | EventFlags::ET)
            .map_err(Into::into)
    }
}

const NEW_SOCKET: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn connect_to(path: &Path) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, NEW_SOCKET, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

/// Makes a connection and sends the other end of it, which is a blocking stream.
fn hand_over(channel: &OwnedFd) -> Result<UnixStream, Errno> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    let theirs = [theirs.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&theirs));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(channel, &[IoSlice::new(&[0])], &mut ancillary, flags)?;
    Ok(ours.into())
}

/// Room is asked for only while something waits for it: a stream socket would report it whenever its
/// reader reads.
fn interest(room: bool) -> EventFlags {
    let events = EventFlags::IN | EventFlags::RDHUP;
    match room {
        true => events | EventFlags::OUT,
        false => events,
    }
}

impl HostStream for UnixStream {
    fn send(&self, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
        socket::send(self.as_fd(), pieces)
    }

    fn send_bytes(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match rustix::net::sendmsg(self, bytes, &mut Default::default(), flags) {
                Err(Errno::INTR) => {}
                result => return result.map_err(Into::into),
            }
        }
    }

    fn receive(&self, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
        socket::receive(self.as_fd(), pieces)
    }

    fn shutdown(&self, how: Shutdown) {
        let _ = UnixStream::shutdown(self, how);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let kind = SocketType::SEQPACKET;
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn received(channel: &OwnedFd) -> UnixStream {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut room = [io::IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(channel, &mut room, &mut ancillary, RecvFlags::empty()).unwrap();
        let mut messages = ancillary.drain();
        match messages.next() {
            Some(RecvAncillaryMessage::ScmRights(mut rights)) => rights.next().unwrap().into(),
            _ => panic!("no descriptor came"),
        }
    }

    #[test]
    fn a_connection_is_handed_over_on_its_ports_channel() {
        let (ours, theirs) = pair();
        let mut host = UnixHost::new(Way::Channels([(70, theirs)].into())).unwrap();
        assert_eq!(host.connect(71).unwrap_err(), ConnectError::Refused);
        for text in [b"one", b"two"] {
            let mut here = host.connect(70).unwrap();
            let mut there = received(&ours);
            here.write_all(text).unwrap();
            let mut seen = [0; 3];
            there.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, text);
            let empty = here.read(&mut seen).unwrap_err();
            assert_eq!(
                empty.kind(),
                io::ErrorKind::WouldBlock,
                "ours does not wait"
            );
        }
        // Nobody takes them, and then nobody is there.
        let busy = (0..100_000).find_map(|_| host.connect(70).err());
        assert_eq!(busy, Some(ConnectError::Busy));
        drop(ours);
        assert_eq!(host.connect(70).unwrap_err(), ConnectError::Refused);
    }

    #[test]
    fn sources_survive_the_way_through_epoll() {
        for source in [
            Source::Stream(Token::Connection(Key {
                host_port: 1024,
                guest_port: u32::MAX,
            })),
            Source::Stream(Token::Connection(Key {
                host_port: FIRST_RESERVED_PORT - 1,
                guest_port: 0,
            })),
            Source::Stream(Token::Detached(u32::MAX)),
            Source::Caller(7),
            Source::Listener,
            Source::Timer,
        ] {
            assert_eq!(Source::from_data(source.to_data()), source);
        }
    }
}
