//! Flow control (virtio 1.2, 5.10.6.3), and the buffer that it bounds.
//!
//! Both directions of a connection count bytes modulo 2^32. The receiver of a direction tells how
//! much it can buffer (`buf_alloc`) and how much has left its buffer (`fwd_cnt`); the sender may have
//! the difference on its way and no more.

use std::{collections::VecDeque, io::IoSlice};

use isopod_memory::GuestSlice;

/// Towards the guest: what it told us, what we sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerCredit {
    buf_alloc: u32,
    fwd_cnt: u32,
    sent: u32,
}

impl PeerCredit {
    /// Takes note of what any packet of the connection says.
    ///
    /// A guest with several CPUs may queue packets in another order than it made them in, so an older
    /// `fwd_cnt` is passed over; so is one beyond what was sent, which can only be a lie.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        let advance = fwd_cnt.wrapping_sub(self.fwd_cnt);
        if advance <= self.on_the_way() {
            self.fwd_cnt = fwd_cnt;
        }
    }

    /// Bytes that may be sent now.
    pub fn available(&self) -> u32 {
        self.buf_alloc.saturating_sub(self.on_the_way())
    }

    /// Takes note of payload sent.
    pub fn consume(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    fn on_the_way(&self) -> u32 {
        self.sent.wrapping_sub(self.fwd_cnt)
    }
}

/// Towards the host: what we promised the guest, what it sent, what its stream has taken; and the
/// bytes in between, which are never more than `buf_alloc`.
#[derive(Debug)]
pub struct Buffer {
    buf_alloc: u32,
    received: u32,
    forwarded: u32,
    /// The `fwd_cnt` that the guest was told last.
    told: u32,
    bytes: VecDeque<u8>,
}

/// The guest sent more than it had credit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverCredit;

/// A buffer as large as this is kept when it becomes empty.
const KEEP: usize = 4096;

impl Buffer {
    /// A buffer for at most `buf_alloc` bytes; takes no memory before it is used.
    pub fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            received: 0,
            forwarded: 0,
            told: 0,
            bytes: VecDeque::new(),
        }
    }

    /// What to tell the guest.
    pub fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// What to tell the guest, which is taken note of.
    pub fn tell_forwarded(&mut self) -> u32 {
        self.told = self.forwarded;
        self.forwarded
    }

    /// Counts `bytes` more bytes from the guest, which the caller then forwards or keeps.
    ///
    /// # Errors
    /// When that is more than was promised; nothing is counted then.
    pub fn receive(&mut self, bytes: u32) -> Result<(), OverCredit> {
        if bytes > self.buf_alloc.saturating_sub(self.unforwarded()) {
            return Err(OverCredit);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Counts bytes that were received and have gone to the host without being kept.
    pub fn forward(&mut self, bytes: usize) {
        // No more than were received: those are counted in 32 bits.
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
    }

    /// Keeps received bytes for later.
    pub fn keep(&mut self, pieces: &[GuestSlice<'_>]) {
        let mut chunk = [0; 4096];
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let copied = rest.copy_to(&mut chunk);
                self.bytes.extend(chunk.iter().take(copied));
                match rest.offset(copied) {
                    Ok(later) if copied > 0 => rest = later,
                    _ => break,
                }
            }
        }
    }

    /// Whether every received byte has gone to the host.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The kept bytes, in order.
    pub fn slices(&self) -> [IoSlice<'_>; 2] {
        let (front, back) = self.bytes.as_slices();
        [IoSlice::new(front), IoSlice::new(back)]
    }

    /// Counts kept bytes that have gone to the host.
    pub fn drain(&mut self, bytes: usize) {
        self.bytes.drain(..bytes.min(self.bytes.len()));
        self.forward(bytes);
        if self.bytes.is_empty() && self.bytes.capacity() > KEEP {
            self.bytes = VecDeque::new();
        }
    }

    /// Throws the kept bytes away: nobody will read them.
    pub fn discard(&mut self) {
        self.drain(self.bytes.len());
    }

    /// Whether the guest should be told of room that it does not know of: it believes that more than
    /// half of the buffer is in use.
    pub fn update_is_due(&self) -> bool {
        let believed = self.received.wrapping_sub(self.told);
        self.told != self.forwarded && believed > self.buf_alloc / 2
    }

    fn unforwarded(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }
}

/// Memory for all buffers of a device. What is promised to guests is reserved, so that no guest can
/// make the host buffer more than the total: the first connections get large buffers, later ones
/// smaller ones, and when nothing is left a connection is refused.
#[derive(Debug)]
pub struct Budget {
    reserved: u64,
}

impl Budget {
    /// `(while less than this is reserved, a connection gets this)`, in bytes: 128 large buffers,
    /// 256 middle ones, 8 192 small ones; 112 MiB in all, reached only if as many host programs all
    /// stop reading.
    const STEPS: [(u64, u32); 3] = [
        (32 << 20, 256 << 10),
        (48 << 20, 64 << 10),
        (112 << 20, 8 << 10),
    ];

    /// Nothing reserved.
    pub fn new() -> Self {
        Self { reserved: 0 }
    }

    /// Whether nothing can be reserved now.
    pub fn is_spent(&self) -> bool {
        Self::STEPS.iter().all(|(below, _)| self.reserved >= *below)
    }

    /// Reserves a buffer; its size, unless all memory is promised.
    pub fn reserve(&mut self) -> Option<u32> {
        let (_, size) = Self::STEPS
            .into_iter()
            .find(|(below, _)| self.reserved < *below)?;
        self.reserved += u64::from(size);
        Some(size)
    }

    /// Gives a reserved buffer back.
    pub fn release(&mut self, size: u32) {
        self.reserved = self.reserved.saturating_sub(u64::from(size));
    }
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod tests;
