//! Descriptors on their way into the monitor, which ttrpc cannot carry.
//!
//! ```text
//!   owner:    send(socket, 7, [disk]) ── one packet: the number, SCM_RIGHTS ──> socket
//!             Attach(slot, parcel 7)  ── ttrpc ──────────────────────────────> control
//!   monitor:                                 take(7): reads the socket until parcel 7 is there
//! ```
//!
//! A packet is in the socket when `send` returns, so that the monitor need not wait for one, nor watch the
//! socket: it looks when `Attach` names a number. What lies there unread is bounded by the socket's
//! buffer, what was read and not asked for by [`MAX_WAITING`].

use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

/// Descriptors of one parcel: a network card's queues at most.
pub const MAX_DESCRIPTORS: usize = 8;
/// Parcels that were read and not asked for yet; of more the oldest is closed.
pub const MAX_WAITING: usize = 8;
/// Packets that are read for one [`Parcels::take`].
const MAX_READ: usize = 64;

const NUMBER: usize = size_of::<u64>();
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// A parcel could not be sent, or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParcelError {
    /// None, or more than fit.
    #[error("a parcel of {0} descriptors: 1 to {MAX_DESCRIPTORS} are possible")]
    Count(usize),
    /// sendmsg(2). `AGAIN`: the monitor has not read what was sent before.
    #[error("send a parcel: {0}")]
    Send(#[source] Errno),
    /// recvmsg(2).
    #[error("read parcels: {0}")]
    Receive(#[source] Errno),
    /// It was not sent, not in one piece, too early, or was taken before.
    #[error("parcel {0} is not there")]
    Missing(u64),
}

/// Sends descriptors under a number; they stay open here too. Does not wait.
///
/// # Errors
/// Too many descriptors, or the socket does not take them.
pub fn send(
    socket: impl AsFd,
    number: u64,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), ParcelError> {
    if !(1..=MAX_DESCRIPTORS).contains(&descriptors.len()) {
        return Err(ParcelError::Count(descriptors.len()));
    }
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let number = number.to_le_bytes();
    sendmsg(socket, &[IoSlice::new(&number)], &mut ancillary, flags)
        .map(drop)
        .map_err(ParcelError::Send)
}

/// The monitor's end.
#[derive(Debug)]
pub struct Parcels {
    socket: OwnedFd,
    waiting: VecDeque<(u64, Vec<OwnedFd>)>,
}

impl Parcels {
    /// Reads from `socket`, one end of a `SOCK_SEQPACKET` pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            waiting: VecDeque::new(),
        }
    }

    /// The descriptors that were sent under a number, the latest if it was used twice.
    ///
    /// # Errors
    /// They are not there.
    pub fn take(&mut self, number: u64) -> Result<Vec<OwnedFd>, ParcelError> {
        for _ in 0..MAX_READ {
            match self.read()? {
                Read::Parcel(parcel) => {
                    if self.waiting.len() >= MAX_WAITING {
                        self.waiting.pop_front();
                    }
                    self.waiting.push_back(parcel);
                }
                Read::Rubbish => {}
                Read::Nothing => break,
            }
        }
        let found = self.waiting.iter().rposition(|(at, _)| *at == number);
        let parcel = found.and_then(|index| self.waiting.remove(index));
        parcel
            .map(|(_, descriptors)| descriptors)
            .ok_or(ParcelError::Missing(number))
    }

    fn read(&self) -> Result<Read, ParcelError> {
        // One byte more than a number has: a longer packet shows.
        let mut bytes = [0; NUMBER + 1];
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut room = [IoSliceMut::new(&mut bytes)];
        let received = loop {
            match recvmsg(&self.socket, &mut room, &mut ancillary, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Read::Nothing),
                Err(error) => return Err(ParcelError::Receive(error)),
                Ok(received) => break received,
            }
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let cut = received
            .flags
            .intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
        let number = bytes.get(..received.bytes).map(<[u8; NUMBER]>::try_from);
        match number {
            // An empty packet and the end of the stream look alike; neither holds anything.
            _ if received.bytes == 0 => Ok(Read::Nothing),
            Some(Ok(number)) if !cut && !descriptors.is_empty() => {
                Ok(Read::Parcel((u64::from_le_bytes(number), descriptors)))
            }
            _ => Ok(Read::Rubbish),
        }
    }
}

enum Read {
    Parcel((u64, Vec<OwnedFd>)),
    Rubbish,
    Nothing,
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Seek as _, Write as _},
    };

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, Parcels) {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (ours, Parcels::new(theirs))
    }

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn text(descriptor: OwnedFd) -> String {
        let mut text = String::new();
        let mut file = File::from(descriptor);
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn parcels_are_found_by_their_number_once() {
        let (ours, mut parcels) = pair();
        let (one, two) = (file("one"), file("two"));
        send(&ours, 1, &[one.as_fd()]).unwrap();
        send(&ours, 2, &[two.as_fd(), one.as_fd()]).unwrap();
        let both: Vec<_> = parcels.take(2).unwrap().into_iter().map(text).collect();
        assert_eq!(both, ["two", "one"]);
        assert_eq!(text(parcels.take(1).unwrap().remove(0)), "one");
        assert_eq!(parcels.take(1).unwrap_err(), ParcelError::Missing(1));
    }

    #[test]
    fn of_a_number_that_was_used_twice_the_latest_counts() {
        let (ours, mut parcels) = pair();
        for name in ["old", "new"] {
            send(&ours, 5, &[file(name).as_fd()]).unwrap();
        }
        assert_eq!(text(parcels.take(5).unwrap().remove(0)), "new");
    }

    #[test]
    fn what_is_no_parcel_is_passed_over() {
        let (ours, mut parcels) = pair();
        for rubbish in [&b"short"[..], &[7; 9], &[7; 100], &[7; 8]] {
            rustix::net::send(&ours, rubbish, SendFlags::empty()).unwrap();
        }
        assert!(matches!(
            parcels.take(u64::from_le_bytes([7; 8])),
            Err(ParcelError::Missing(_))
        ));
        send(&ours, 3, &[file("x").as_fd()]).unwrap();
        assert_eq!(parcels.take(3).unwrap().len(), 1);
        let many: Vec<File> = (0..9).map(|_| file("")).collect();
        let many: Vec<_> = many.iter().map(AsFd::as_fd).collect();
        assert_eq!(send(&ours, 4, &many), Err(ParcelError::Count(9)));
        assert_eq!(send(&ours, 4, &[]), Err(ParcelError::Count(0)));
        drop(ours);
        assert_eq!(parcels.take(4).unwrap_err(), ParcelError::Missing(4));
    }

    proptest::proptest! {
        /// Packets of any length with any number of descriptors, and any number asked for in between.
        #[test]
        fn any_packets_leave_no_more_than_is_bounded(
            packets in proptest::collection::vec(
                (proptest::collection::vec(0u8..3, 0..12), 0usize..12),
                0..60,
            ),
            wanted in proptest::collection::vec(proptest::num::u64::ANY, 0..8),
        ) {
            let (ours, mut parcels) = pair();
            let file = file("x");
            for (bytes, count) in packets {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(12))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                let descriptors = vec![file.as_fd(); count];
                if count > 0 {
                    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                // A full socket takes no more.
                let _ = sendmsg(&ours, &[IoSlice::new(&bytes)], &mut ancillary, flags);
            }
            for number in wanted.into_iter().chain([0]) {
                if let Ok(taken) = parcels.take(number) {
                    proptest::prop_assert!((1..=MAX_DESCRIPTORS).contains(&taken.len()));
                }
                proptest::prop_assert!(parcels.waiting.len() <= MAX_WAITING);
            }
        }
    }

    #[test]
    fn what_nobody_asks_for_is_bounded() {
        let (ours, mut parcels) = pair();
        let file = file("x");
        for number in 0..40 {
            send(&ours, number, &[file.as_fd()]).unwrap();
        }
        assert!(parcels.take(1000).is_err());
        assert_eq!(parcels.waiting.len(), MAX_WAITING);
        assert!(parcels.take(31).is_err(), "the oldest were closed");
        assert!(parcels.take(39).is_ok());
        // Nobody reads: the socket fills up, and the sender is told at once.
        let full = (0..100_000).find_map(|number| send(&ours, number, &[file.as_fd()]).err());
        assert!(matches!(
            full,
            Some(ParcelError::Send(Errno::AGAIN | Errno::TOOMANYREFS))
        ));
    }
}
