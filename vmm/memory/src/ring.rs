//! Many transfers between guest memory and files at once, by io_uring(7).
//!
//! The kernel keeps the addresses of a transfer until it is done. A [`TransferRing`] therefore owns
//! what they lie in: the guest's memory stays mapped and the file open until then, whatever becomes of
//! the request, the device or the ring.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
};

use io_uring::{IoUring, opcode, register::Restriction, types};

use crate::{AddressSpace, GuestMemory, GuestMemoryRegion, GuestSlice};

/// Pieces of one transfer at most (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;
/// Threads of the kernel that may wait for files and for other things on the ring's behalf.
const WORKERS: [u32; 2] = [8, 1];

/// What is to be moved.
#[derive(Clone, Copy, Debug)]
pub enum Transfer<'a> {
    /// From the file into these pieces, in order.
    Read(&'a [GuestSlice<'a>]),
    /// From these pieces, in order, into the file.
    Write(&'a [GuestSlice<'a>]),
    /// What was written reaches the disk.
    Sync,
}

/// A transfer that could not be started; the caller may do it in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// As many as the ring has entries are on their way.
    #[error("the ring is full")]
    Full,
    /// More pieces than the kernel takes.
    #[error("more than {MAX_PIECES} pieces")]
    Pieces,
    /// A piece that is not of the memory that was given with it.
    #[error("a piece of another memory")]
    OtherMemory,
}

/// What the kernel works on.
struct Running {
    token: u64,
    /// Read by the kernel at the latest when the transfer is submitted; kept until it is done.
    vector: Box<[libc::iovec]>,
    _memory: GuestMemory,
    file: Arc<File>,
}

/// Transfers on their way, as many as the ring has entries at most.
pub struct TransferRing {
    ring: IoUring,
    running: Vec<Option<Running>>,
    free: Vec<usize>,
}

// SAFETY: the addresses in `running` are of guest memory that is shared anyway, and are only handed to
// the kernel; nothing is bound to the thread that made the ring.
unsafe impl Send for TransferRing {}

impl TransferRing {
    /// A ring for `entries` transfers, which can do nothing but read, write and sync. The kernel's threads
    /// that wait on behalf of a thread which uses it are few, whichever thread made it.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or forbids it.
    pub fn new(entries: u16) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .dontfork()
            .build(entries.into())?;
        let mut allowed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ]
        .map(Restriction::sqe_op);
        let mut workers = WORKERS;
        ring.submitter().register_iowq_max_workers(&mut workers)?;
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        Ok(Self {
            ring,
            running: (0..entries).map(|_| None).collect(),
            free: (0..entries.into()).collect(),
        })
    }

    /// Transfers on their way, or done and not yet [taken](Self::completed).
    pub fn running(&self) -> usize {
        self.running.len() - self.free.len()
    }

    /// Prepares a transfer at `offset`; [`submit`](Self::submit) starts it. `token` names it.
    ///
    /// # Errors
    /// When it cannot be done by this ring, now or ever.
    pub fn start(
        &mut self,
        token: u64,
        file: &Arc<File>,
        memory: &GuestMemory,
        transfer: Transfer<'_>,
        offset: u64,
    ) -> Result<(), StartError> {
        let pieces = match transfer {
            Transfer::Read(pieces) | Transfer::Write(pieces) => pieces,
            Transfer::Sync => &[],
        };
        if pieces.len() > MAX_PIECES {
            return Err(StartError::Pieces);
        }
        if !pieces.iter().all(|piece| is_of(piece, memory)) {
            return Err(StartError::OtherMemory);
        }
        let slot = self.free.pop().ok_or(StartError::Full)?;
        let entry = |piece: &GuestSlice<'_>| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        };
        let running = Running {
            token,
            vector: pieces.iter().map(entry).collect(),
            _memory: memory.clone(),
            file: Arc::clone(file),
        };
        let (vector, count) = (running.vector.as_ptr(), running.vector.len() as u32);
        let fd = types::Fd(running.file.as_raw_fd());
        let operation = match transfer {
            Transfer::Read(_) => opcode::Readv::new(fd, vector, count).offset(offset).build(),
            Transfer::Write(_) => opcode::Writev::new(fd, vector, count)
                .offset(offset)
                .build(),
            Transfer::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        };
        let operation = operation.user_data(slot as u64);
        // SAFETY: the file and the vector live in `running`, and what the vector names is in the
        // memory that `running` owns a share of (`is_of`). All three are kept in `self.running` until
        // the kernel has said that the operation is done, or are leaked by `drop`.
        let pushed = unsafe { self.ring.submission().push(&operation) };
        match (pushed, self.running.get_mut(slot)) {
            (Ok(()), Some(place)) => {
                *place = Some(running);
                Ok(())
            }
            // As many entries as slots, and each is submitted before its slot is free again.
            _ => {
                self.free.push(slot);
                Err(StartError::Full)
            }
        }
    }

    /// Starts what was prepared.
    ///
    /// # Errors
    /// When the kernel cannot now; what was prepared is started with the next call.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// Waits until every transfer is done; they are still to be [taken](Self::completed).
    ///
    /// # Errors
    /// io_uring_enter(2)'s.
    pub fn wait(&mut self) -> io::Result<()> {
        let running = self.running();
        while self.ring.completion().len() < running {
            self.enter(running)?;
        }
        Ok(())
    }

    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(wanted) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The token of a transfer that is done, and the bytes that it moved.
    pub fn completed(&mut self) -> Option<(u64, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let slot = usize::try_from(entry.user_data()).ok()?;
        let running = self.running.get_mut(slot)?.take()?;
        self.free.push(slot);
        let result = usize::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(entry.result().wrapping_neg()));
        Some((running.token, result))
    }
}

impl AsFd for TransferRing {
    /// Readable when a transfer is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for TransferRing {
    fn drop(&mut self) {
        if self.wait().is_err() {
            // The kernel may still write: what it writes to must outlive this.
            std::mem::forget(std::mem::take(&mut self.running));
        }
    }
}

/// Whether a piece lies in one region of this memory.
fn is_of(piece: &GuestSlice<'_>, memory: &GuestMemory) -> bool {
    let guard = piece.ptr_guard_mut();
    let start = guard.as_ptr() as usize;
    memory.iter().any(|region| {
        let first = region.as_ptr() as usize;
        let inside = start.checked_sub(first);
        let end = inside.and_then(|offset| offset.checked_add(piece.len()));
        end.is_some_and(|end| end as u64 <= region.len())
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::{Bytes, GuestAddress, anonymous};

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    fn taken(ring: &mut TransferRing) -> Vec<(u64, usize)> {
        ring.wait().unwrap();
        let done = std::iter::from_fn(|| ring.completed());
        let mut done: Vec<_> = done.map(|(token, moved)| (token, moved.unwrap())).collect();
        done.sort_unstable();
        done
    }

    #[test]
    fn transfers_run_side_by_side() {
        let memory = anonymous(&[(0, 0x10000)]).unwrap();
        let file = file(&[7; 8192]);
        let mut ring = TransferRing::new(8).unwrap();
        memory.write_slice(&[9; 512], GuestAddress(0x8000)).unwrap();
        let slice = |at, bytes| memory.get_slice(GuestAddress(at), bytes).unwrap();
        let read = [slice(0, 100), slice(0x1000, 412)];
        ring.start(1, &file, &memory, Transfer::Read(&read), 0)
            .unwrap();
        let write = [slice(0x8000, 512)];
        ring.start(2, &file, &memory, Transfer::Write(&write), 4096)
            .unwrap();
        ring.start(3, &file, &memory, Transfer::Sync, 0).unwrap();
        ring.submit().unwrap();
        assert_eq!(taken(&mut ring), [(1, 512), (2, 512), (3, 0)]);
        let byte: u8 = memory.read_obj(GuestAddress(0x1000 + 411)).unwrap();
        assert_eq!(byte, 7);
        let mut content = Vec::new();
        let mut reader: &File = &file;
        reader.rewind().unwrap();
        reader.read_to_end(&mut content).unwrap();
        assert_eq!((content[4095], content[4096], content[4608]), (7, 9, 7));
    }

    #[test]
    fn a_full_ring_says_so_and_is_used_again() {
        let memory = anonymous(&[(0, 0x1000)]).unwrap();
        let file = file(&[1; 4096]);
        let mut ring = TransferRing::new(4).unwrap();
        for round in 0..3 {
            for token in 0..4 {
                ring.start(token, &file, &memory, Transfer::Sync, 0)
                    .unwrap();
            }
            let more = ring.start(9, &file, &memory, Transfer::Sync, 0);
            assert_eq!(more, Err(StartError::Full), "{round}");
            assert_eq!(taken(&mut ring).len(), 4);
            assert_eq!(ring.running(), 0);
        }
    }

    #[test]
    fn memory_and_file_outlive_their_owners() {
        let memory = anonymous(&[(0, 0x1000)]).unwrap();
        let file = file(&[1; 4096]);
        let mut ring = TransferRing::new(4).unwrap();
        let pieces = [memory.get_slice(GuestAddress(0), 4096).unwrap()];
        ring.start(1, &file, &memory, Transfer::Read(&pieces), 0)
            .unwrap();
        drop((memory, file));
        assert_eq!(taken(&mut ring), [(1, 4096)]);
    }

    #[test]
    fn pieces_of_another_memory_are_refused() {
        let memory = anonymous(&[(0, 0x1000)]).unwrap();
        let other = anonymous(&[(0, 0x1000)]).unwrap();
        let pieces = [other.get_slice(GuestAddress(0), 16).unwrap()];
        let mut ring = TransferRing::new(4).unwrap();
        let started = ring.start(1, &file(b""), &memory, Transfer::Read(&pieces), 0);
        assert_eq!(started, Err(StartError::OtherMemory));
    }

    #[test]
    fn an_error_is_its_transfers_own() {
        let memory = anonymous(&[(0, 0x1000)]).unwrap();
        let read_only = Arc::new(File::open("/proc/self/exe").unwrap());
        let mut ring = TransferRing::new(4).unwrap();
        let pieces = [memory.get_slice(GuestAddress(0), 16).unwrap()];
        ring.start(5, &read_only, &memory, Transfer::Write(&pieces), 0)
            .unwrap();
        ring.wait().unwrap();
        let (token, result) = ring.completed().unwrap();
        assert_eq!(
            (token, result.unwrap_err().raw_os_error()),
            (5, Some(libc::EBADF))
        );
    }
}
