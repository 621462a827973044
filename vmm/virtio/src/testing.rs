//! A guest driver for tests: it writes descriptors and rings in memory and needs no VM.
//!
//! It can behave ([`DriverQueue::offer`]) and misbehave ([`DriverQueue::write_descriptor`],
//! [`DriverQueue::offer_head`], [`DriverQueue::set_available_index`]). It panics on mistakes of the
//! test itself. [`MmioDriver`] does the same behind a device's registers.

mod direct;
mod mmio;

use std::sync::atomic::Ordering;

use isopod_memory::{Bytes, GuestAddress, GuestMemory, anonymous};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{
    Queue, QueueT,
    desc::{RawDescriptor, split::Descriptor},
};

pub use self::{
    direct::Direct,
    mmio::{MmioDriver, PATIENCE},
};

/// Memory of an imaginary guest, handed out from the bottom.
#[derive(Debug)]
pub struct GuestRam {
    /// The memory, from guest-physical address 0.
    pub memory: GuestMemory,
    next: u64,
    end: u64,
}

impl GuestRam {
    /// `bytes` of memory. Page 0 is never handed out.
    pub fn new(bytes: u64) -> Self {
        Self {
            memory: anonymous(&[(0, bytes as usize)]).expect("map memory for a test"),
            next: 0x1000,
            end: bytes,
        }
    }

    /// Memory of another guest, below `end`.
    pub fn over(memory: GuestMemory, end: u64) -> Self {
        Self {
            memory,
            next: 0x1000,
            end,
        }
    }

    /// As [`new`](Self::new), of a file, so that another process could map it.
    pub fn shared(bytes: u64) -> Self {
        let file = tempfile::tempfile().expect("a file for a test");
        file.set_len(bytes).expect("a file for a test");
        let whole = isopod_memory::FileRegion {
            start: 0,
            offset: 0,
            bytes: bytes as usize,
        };
        Self {
            memory: isopod_memory::shared(&file, &[whole]).expect("map memory for a test"),
            next: 0x1000,
            end: bytes,
        }
    }

    /// Unused memory, 16-byte aligned; its address.
    pub fn allocate(&mut self, bytes: u64) -> u64 {
        let address = self.next;
        self.next += bytes.next_multiple_of(16);
        assert!(self.next <= self.end, "the test needs more guest memory");
        address
    }

    /// Copies `bytes` into the guest.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("an address in guest memory");
    }

    /// Copies out of the guest.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut copy = vec![0; bytes];
        self.memory
            .read_slice(&mut copy, GuestAddress(address))
            .expect("an address in guest memory");
        copy
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// Device-readable: guest-physical address and length.
    Readable(u64, u32),
    /// Device-writable: guest-physical address and length.
    Writable(u64, u32),
}

/// An answered chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u16,
    /// Bytes that the device wrote.
    pub written: u32,
}

/// The driver's side of one split ring.
#[derive(Debug)]
pub struct DriverQueue {
    memory: GuestMemory,
    size: u16,
    event_idx: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    available: u16,
    seen: u16,
    free: Vec<u16>,
    /// The descriptors of each chain on its way, by head.
    chains: Vec<Vec<u16>>,
}

impl DriverQueue {
    /// Lays out a ring of `size` descriptors.
    pub fn new(ram: &mut GuestRam, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        Self {
            desc_table: ram.allocate(16 * entries),
            avail_ring: ram.allocate(6 + 2 * entries),
            used_ring: ram.allocate(6 + 8 * entries),
            memory: ram.memory.clone(),
            size,
            event_idx,
            available: 0,
            seen: 0,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
        }
    }

    /// The device's side, as a transport would have set it up.
    pub fn device_side(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("a size that is a power of two");
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = halves(self.desc_table);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.avail_ring);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used_ring);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        queue
    }

    /// Descriptors that are not on their way.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Offers a chain; its head.
    pub fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        assert!(!buffers.is_empty() && buffers.len() <= self.free.len());
        let indices: Vec<u16> = buffers.iter().filter_map(|_| self.free.pop()).collect();
        for (n, buffer) in buffers.iter().enumerate() {
            let (address, bytes, mut flags) = match *buffer {
                Buffer::Readable(address, bytes) => (address, bytes, 0),
                Buffer::Writable(address, bytes) => (address, bytes, VRING_DESC_F_WRITE as u16),
            };
            let next = indices.get(n + 1).copied();
            if next.is_some() {
                flags |= VRING_DESC_F_NEXT as u16;
            }
            self.write_descriptor(indices[n], address, bytes, flags, next.unwrap_or(0));
        }
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.offer_head(head);
        head
    }

    /// Writes one descriptor of the table, as it stands.
    pub fn write_descriptor(&self, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        write_descriptor_at(
            &self.memory,
            self.desc_table + 16 * u64::from(index),
            address,
            bytes,
            flags,
            next,
        );
    }

    /// Puts `head` into the available ring, whatever it is.
    pub fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.store(self.avail_ring + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    /// Sets the available ring's index, whatever it is.
    pub fn set_available_index(&self, index: u16) {
        self.store(self.avail_ring + 2, index);
    }

    /// Sets the available ring's flags: 1 asks for no signals (without `EVENT_IDX`).
    pub fn set_available_flags(&self, flags: u16) {
        self.store(self.avail_ring, flags);
    }

    /// With `EVENT_IDX`: asks to be signalled when the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        self.store(self.avail_ring + 4 + 2 * u64::from(self.size), index);
    }

    /// With `EVENT_IDX`: the available index at which the device wants to be notified.
    pub fn available_event(&self) -> u16 {
        self.load(self.used_ring + 4 + 8 * u64::from(self.size))
    }

    /// Chains offered so far (runs over 16 bits).
    pub fn available_index(&self) -> u16 {
        self.available
    }

    /// The next answered chain, whose descriptors are then free again.
    pub fn take_used(&mut self) -> Option<Used> {
        let (head, written) = self.next_used()?;
        let head = u16::try_from(head).expect("a head that was offered");
        self.free.append(&mut self.chains[usize::from(head)]);
        Some(Used { head, written })
    }

    /// As [`take_used`](Self::take_used), for a driver that may have written into its own used ring: a
    /// head that does not exist frees nothing.
    pub fn take_plausible_used(&mut self) -> Option<u32> {
        let (head, written) = self.next_used()?;
        let head = usize::try_from(head).unwrap_or(usize::MAX);
        if let Some(chain) = self.chains.get_mut(head) {
            self.free.append(chain);
        }
        Some(written)
    }

    fn next_used(&mut self) -> Option<(u32, u32)> {
        if self.load(self.used_ring + 2) == self.seen {
            return None;
        }
        let entry = self.used_ring + 4 + 8 * u64::from(self.seen % self.size);
        let read = |address| -> u32 {
            u32::from_le(
                self.memory
                    .load(GuestAddress(address), Ordering::Acquire)
                    .expect("the used ring"),
            )
        };
        let used = (read(entry), read(entry + 4));
        self.seen = self.seen.wrapping_add(1);
        self.set_used_event(self.seen);
        Some(used)
    }

    fn store(&self, address: u64, value: u16) {
        self.memory
            .store(value.to_le(), GuestAddress(address), Ordering::Release)
            .expect("an address in the rings");
    }

    fn load(&self, address: u64) -> u16 {
        u16::from_le(
            self.memory
                .load(GuestAddress(address), Ordering::Acquire)
                .expect("an address in the rings"),
        )
    }
}

/// Writes a descriptor anywhere: for indirect tables.
pub fn write_descriptor_at(
    memory: &GuestMemory,
    at: u64,
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
) {
    let descriptor = RawDescriptor::from(Descriptor::new(address, bytes, flags, next));
    memory
        .write_obj(descriptor, GuestAddress(at))
        .expect("an address in guest memory");
}
