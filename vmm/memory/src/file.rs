//! Moving bytes between guest memory and a file at an offset without a copy of our own.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use vm_memory::bitmap::Bitmap;

use crate::GuestSlice;

/// Pieces per system call; more are moved by more calls.
const PIECES_PER_CALL: usize = 128;

/// Reads from `offset` into `pieces`, in order, until they are full or the file ends; returns the
/// bytes read.
///
/// # Errors
/// The first system call's; a later one's is given up with what was read before.
pub fn read_at(file: BorrowedFd<'_>, pieces: &[GuestSlice<'_>], offset: u64) -> io::Result<usize> {
    let read = transfer(pieces, offset, |vector, offset| {
        // SAFETY: every entry of `vector` names memory that a live `GuestSlice` guarantees to be
        // mapped and writable for its length; no Rust reference to that memory exists.
        unsafe {
            libc::preadv64(
                file.as_raw_fd(),
                vector.as_ptr(),
                vector.len() as i32,
                offset,
            )
        }
    })?;
    let mut left = read;
    for piece in pieces {
        let bytes = left.min(piece.len());
        piece.bitmap().mark_dirty(0, bytes);
        left -= bytes;
    }
    Ok(read)
}

/// Writes `pieces`, in order, at `offset`; returns the bytes written.
///
/// # Errors
/// The first system call's; a later one's is given up with what was written before.
pub fn write_at(file: BorrowedFd<'_>, pieces: &[GuestSlice<'_>], offset: u64) -> io::Result<usize> {
    transfer(pieces, offset, |vector, offset| {
        // SAFETY: as in `read_at`; the memory is only read.
        unsafe {
            libc::pwritev64(
                file.as_raw_fd(),
                vector.as_ptr(),
                vector.len() as i32,
                offset,
            )
        }
    })
}

fn transfer(
    pieces: &[GuestSlice<'_>],
    offset: u64,
    call: impl Fn(&[libc::iovec], i64) -> isize,
) -> io::Result<usize> {
    let mut total = 0usize;
    for group in pieces.chunks(PIECES_PER_CALL) {
        let mut vector = [libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }; PIECES_PER_CALL];
        let mut wanted = 0usize;
        for (entry, piece) in vector.iter_mut().zip(group) {
            // The guard only does something under Xen, which is not supported; the mapping lives as
            // long as the slice.
            entry.iov_base = piece.ptr_guard_mut().as_ptr().cast();
            entry.iov_len = piece.len();
            wanted = wanted.saturating_add(piece.len());
        }
        let position = offset
            .checked_add(total as u64)
            .and_then(|position| i64::try_from(position).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let moved = loop {
            match usize::try_from(call(&vector[..group.len()], position)) {
                Ok(moved) => break moved,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match error.kind() {
                        io::ErrorKind::Interrupted => {}
                        _ if total > 0 => return Ok(total),
                        _ => return Err(error),
                    }
                }
            }
        };
        total += moved;
        if moved < wanted {
            break;
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::{AddressSpace, Bytes, GuestAddress, anonymous};

    #[test]
    fn many_pieces_are_moved_in_order_and_stop_at_the_end_of_the_file() {
        let memory = anonymous(&[(0, 0x10000)]).unwrap();
        let file = tempfile::tempfile().unwrap();
        // Pieces lie backwards in memory, more than one call takes.
        let piece = |n: u64| memory.get_slice(GuestAddress((299 - n) * 16), 16).unwrap();
        let pieces: Vec<_> = (0..300).map(piece).collect();
        for n in 0..300u64 {
            let bytes = [n as u8; 16];
            memory
                .write_slice(&bytes, GuestAddress((299 - n) * 16))
                .unwrap();
        }
        assert_eq!(write_at(file.as_fd(), &pieces, 5).unwrap(), 4800);
        assert_eq!(file.metadata().unwrap().len(), 4805);

        assert_eq!(read_at(file.as_fd(), &pieces, 5 + 16).unwrap(), 4784);
        let mut first = [0; 16];
        memory
            .read_slice(&mut first, GuestAddress(299 * 16))
            .unwrap();
        assert_eq!(first, [1; 16]);
        assert_eq!(read_at(file.as_fd(), &pieces, 1 << 40).unwrap(), 0);
        assert!(read_at(file.as_fd(), &pieces, u64::MAX).is_err());
    }
}
