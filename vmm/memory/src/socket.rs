//! Moving bytes between guest memory and a stream socket without a copy of our own.
//!
//! The kernel copies straight from or to the guest's pages, from several pieces in one call. Never
//! raises SIGPIPE; an interrupted call is repeated.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use vm_memory::bitmap::Bitmap;

use crate::GuestSlice;

/// Pieces that one call passes to the kernel at most; the rest waits for the next call.
pub const MAX_PIECES: usize = 64;

/// Receives once into `pieces`, in order; returns the bytes received, 0 at the end of the stream (or
/// if there is no room in `pieces`).
///
/// # Errors
/// The system call's, `WouldBlock` among them.
pub fn receive(socket: BorrowedFd<'_>, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
    let (mut vector, count) = vector(pieces);
    let mut message = message(&mut vector, count);
    let received = retry(|| {
        // SAFETY: `message` points at `count` initialised entries of `vector`, which outlives the
        // call. Each names memory that a live `GuestSlice` guarantees to be mapped and writable for
        // its length; no Rust reference to that memory exists.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
    })?;
    let mut left = received;
    for piece in pieces {
        let bytes = left.min(piece.len());
        piece.bitmap().mark_dirty(0, bytes);
        left -= bytes;
    }
    Ok(received)
}

/// Sends once from `pieces`, in order; returns the bytes sent.
///
/// # Errors
/// The system call's, `WouldBlock` and `BrokenPipe` among them.
pub fn send(socket: BorrowedFd<'_>, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
    let (mut vector, count) = vector(pieces);
    let message = message(&mut vector, count);
    retry(|| {
        // SAFETY: as in `receive`; the memory is only read.
        unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                &raw const message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        }
    })
}

fn vector(pieces: &[GuestSlice<'_>]) -> ([libc::iovec; MAX_PIECES], usize) {
    let mut vector = [libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 0,
    }; MAX_PIECES];
    let mut count = 0;
    for (entry, piece) in vector.iter_mut().zip(pieces) {
        // The guard only does something under Xen, which is not supported; the mapping lives as
        // long as the slice.
        entry.iov_base = piece.ptr_guard_mut().as_ptr().cast();
        entry.iov_len = piece.len();
        count += 1;
    }
    (vector, count)
}

fn message(vector: &mut [libc::iovec; MAX_PIECES], count: usize) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data for which all zeroes is the empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vector.as_mut_ptr();
    message.msg_iovlen = count;
    message
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::{fd::AsFd, unix::net::UnixStream},
    };

    use super::*;
    use crate::{AddressSpace, Bytes, GuestAddress, GuestMemory, anonymous};

    fn memory() -> GuestMemory {
        anonymous(&[(0, 0x10000)]).unwrap()
    }

    #[test]
    fn pieces_are_sent_and_received_in_order() {
        let memory = memory();
        let (here, mut there) = UnixStream::pair().unwrap();
        memory.write_slice(b"hello", GuestAddress(0x100)).unwrap();
        memory.write_slice(b" world", GuestAddress(0x9000)).unwrap();
        let pieces = [
            memory.get_slice(GuestAddress(0x100), 5).unwrap(),
            memory.get_slice(GuestAddress(0x9000), 6).unwrap(),
        ];
        assert_eq!(send(here.as_fd(), &pieces).unwrap(), 11);
        let mut got = [0; 11];
        there.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello world");

        there.write_all(b"abcdefgh").unwrap();
        assert_eq!(receive(here.as_fd(), &pieces).unwrap(), 8);
        let mut first = [0; 5];
        memory.read_slice(&mut first, GuestAddress(0x100)).unwrap();
        let mut second = [0; 6];
        memory
            .read_slice(&mut second, GuestAddress(0x9000))
            .unwrap();
        assert_eq!(&first, b"abcde");
        assert_eq!(&second, b"fghrld", "only what was received is written");
    }

    #[test]
    fn an_empty_socket_would_block_and_a_closed_one_says_so() {
        let memory = memory();
        let (here, there) = UnixStream::pair().unwrap();
        let pieces = [memory.get_slice(GuestAddress(0), 16).unwrap()];
        let kind = |result: io::Result<usize>| result.unwrap_err().kind();
        assert_eq!(
            kind(receive(here.as_fd(), &pieces)),
            io::ErrorKind::WouldBlock
        );
        drop(there);
        assert_eq!(receive(here.as_fd(), &pieces).unwrap(), 0);
        assert_eq!(kind(send(here.as_fd(), &pieces)), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn more_pieces_than_one_call_takes_are_left_for_the_next() {
        let memory = memory();
        let (here, _there) = UnixStream::pair().unwrap();
        let pieces: Vec<_> = (0..MAX_PIECES as u64 + 1)
            .map(|n| memory.get_slice(GuestAddress(n * 16), 16).unwrap())
            .collect();
        assert_eq!(send(here.as_fd(), &pieces).unwrap(), MAX_PIECES * 16);
    }
}
