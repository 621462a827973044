//! Host programs that have connected to the listening socket and are yet to say where they want to:
//! `CONNECT <port>\n`.
//!
//! A bounded number of them is let in, each for a bounded time; the others wait in the socket's
//! listen queue.

use std::{
    collections::BTreeMap,
    io,
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};

use rustix::net::RecvFlags;

use super::host::{Source, UnixHost};

/// Callers that are let in at a time.
const MAX_CALLERS: usize = 128;

/// How long a caller may take to say where it wants to.
const LINE_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest line: `CONNECT 4294967295\n` with room for spaces.
const MAX_LINE: usize = 32;

/// How long to wait when no descriptor was left for a caller.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A caller that has said where it wants to.
#[derive(Debug)]
pub struct Call {
    /// Its stream, non-blocking; the line has been taken off.
    pub stream: UnixStream,
    /// The guest's port.
    pub guest_port: u32,
}

/// The door for host programs.
#[derive(Debug)]
pub struct Callers {
    listener: UnixListener,
    /// Whether the listener is watched.
    open: bool,
    /// Somebody may be waiting outside.
    knocked: bool,
    retry_at: Option<Instant>,
    /// By number; numbers ascend, and as all have the same time, so do deadlines.
    inside: BTreeMap<u32, (UnixStream, Instant)>,
    next: u32,
    /// Callers that were sent away for what they said, or for saying nothing.
    refused: u64,
}

impl Callers {
    /// The door is closed at first.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            open: false,
            knocked: false,
            retry_at: None,
            inside: BTreeMap::new(),
            next: 0,
            refused: 0,
        })
    }

    /// Opens the door.
    ///
    /// # Errors
    /// When the listener cannot be watched.
    pub fn open(&mut self, host: &UnixHost) -> io::Result<()> {
        if !self.open {
            host.watch_readable(Source::Listener, &self.listener)?;
            self.open = true;
        }
        Ok(())
    }

    /// Closes it and sends everybody away who is inside.
    pub fn close(&mut self, host: &UnixHost) {
        if self.open {
            host.forget(&self.listener);
        }
        self.open = false;
        self.knocked = false;
        self.retry_at = None;
        self.inside = BTreeMap::new();
    }

    /// Callers sent away so far.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The listener is ready.
    pub fn knock(&mut self) {
        self.knocked = true;
    }

    /// Lets in whom there is room for.
    pub fn let_in(&mut self, host: &UnixHost, now: Instant) {
        if !self.open || self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.retry_at = None;
        while self.knocked && self.inside.len() < MAX_CALLERS {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(host, stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.knocked = false,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // Most likely out of descriptors: connections that end give some back.
                    self.retry_at = Some(now + ACCEPT_RETRY);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, host: &UnixHost, stream: UnixStream, now: Instant) {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| host.watch_readable(Source::Caller(id), &stream));
        match watched {
            Ok(()) => {
                self.inside.insert(id, (stream, now + LINE_TIMEOUT));
            }
            Err(_) => self.refused += 1,
        }
    }

    /// A caller's stream is ready: where it wants to, if it has said so.
    pub fn listen_to(&mut self, id: u32, host: &UnixHost) -> Option<Call> {
        let (stream, _) = self.inside.get(&id)?;
        match read_line(stream) {
            Ok(None) => None,
            Ok(Some(guest_port)) => {
                let (stream, _) = self.inside.remove(&id)?;
                host.forget(&stream);
                Some(Call { stream, guest_port })
            }
            Err(_) => {
                self.inside.remove(&id);
                self.refused += 1;
                None
            }
        }
    }

    /// Sends those away who said nothing for too long.
    pub fn on_time(&mut self, now: Instant) {
        self.inside.retain(|_, (_, deadline)| {
            let patient = *deadline > now;
            self.refused += u64::from(!patient);
            patient
        });
    }

    /// When [`on_time`](Self::on_time) and [`let_in`](Self::let_in) are to be called next.
    pub fn next_time(&self) -> Option<Instant> {
        let deadline = self.inside.values().map(|(_, deadline)| *deadline).min();
        [deadline, self.retry_at].into_iter().flatten().min()
    }
}

/// The port in a caller's line, once the line is complete. What follows the line stays in the stream.
fn read_line(stream: &UnixStream) -> io::Result<Option<u32>> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut line = [0; MAX_LINE];
    // Looked at first, because what follows the line belongs to the guest.
    let (seen, _) = match rustix::net::recv(stream, &mut line, RecvFlags::PEEK) {
        Ok(seen) => seen,
        Err(rustix::io::Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if seen == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let seen = line.get(..seen).ok_or_else(bad)?;
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return match seen.len() {
            MAX_LINE => Err(bad()),
            _ => Ok(None),
        };
    };
    let port = seen.get(..end).and_then(parse_line).ok_or_else(bad)?;
    let mut taken = [0; MAX_LINE];
    let taken = taken.get_mut(..=end).ok_or_else(bad)?;
    rustix::net::recv(stream, taken, RecvFlags::empty())?;
    Ok(Some(port))
}

/// `CONNECT <port>`, in either case, as Firecracker takes it.
fn parse_line(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    if !word.eq_ignore_ascii_case("connect") || words.next().is_some() {
        return None;
    }
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("CONNECT 1024", Some(1024))]
    #[case("connect 0", Some(0))]
    #[case("CONNECT 4294967295", Some(u32::MAX))]
    #[case("CONNECT   7 ", Some(7))]
    #[case("CONNECT 4294967296", None)]
    #[case("CONNECT", None)]
    #[case("CONNECT -1", None)]
    #[case("CONNECT +1", None)]
    #[case("CONNECT 1 2", None)]
    #[case("GET / HTTP/1.1", None)]
    #[case("", None)]
    fn lines(#[case] line: &str, #[case] port: Option<u32>) {
        assert_eq!(parse_line(line.as_bytes()), port);
    }

    #[test]
    fn a_line_may_come_in_pieces_and_what_follows_stays() {
        let (mut caller, here) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        assert_eq!(read_line(&here).unwrap(), None);
        caller.write_all(b"CONN").unwrap();
        assert_eq!(read_line(&here).unwrap(), None);
        caller.write_all(b"ECT 5\nhello").unwrap();
        assert_eq!(read_line(&here).unwrap(), Some(5));
        let mut rest = [0; 5];
        (&here).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut caller, here) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        caller.write_all(&[b' '; MAX_LINE - 1]).unwrap();
        assert_eq!(read_line(&here).unwrap(), None);
        caller.write_all(b" ").unwrap();
        assert!(read_line(&here).is_err());
    }

    #[test]
    fn a_caller_that_leaves_is_refused() {
        let (caller, here) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        drop(caller);
        assert!(read_line(&here).is_err());
    }
}
