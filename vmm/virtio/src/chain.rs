//! One descriptor chain, checked as a whole before a device sees any of it.
//!
//! virtio 1.2, 2.7.5: what a driver must not do is refused here, not interpreted.

use std::mem::size_of;

use isopod_memory::{AddressSpace, Bytes, GuestAddress, GuestMemory};
use virtio_queue::desc::split::Descriptor;

use crate::cursor::{Pieces, Readable, Writable};

/// What one request of a device may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainLimits {
    /// Bytes that the device may be asked to read.
    pub max_readable: u32,
    /// Bytes that the device may be asked to write.
    pub max_writable: u32,
    /// Whether `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

/// A driver broke a rule for chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// An index that is not in the table.
    #[error("descriptor index {index} is outside a table of {size}")]
    IndexOutsideTable {
        /// The index.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// More descriptors than the queue has: a loop, or a chain that is not allowed to be.
    #[error("the chain is longer than its queue of {size}, or loops")]
    Loop {
        /// Entries of the queue.
        size: u16,
    },
    /// A descriptor that cannot be read.
    #[error("descriptor at {address:#x} is not guest memory")]
    DescriptorOutsideMemory {
        /// Guest-physical.
        address: u64,
    },
    /// A buffer that is not, or not wholly, guest memory.
    #[error("buffer of {bytes} bytes at {address:#x} is not guest memory")]
    BufferOutsideMemory {
        /// Guest-physical.
        address: u64,
        /// The buffer's length.
        bytes: u32,
    },
    /// A buffer of length zero.
    #[error("buffer at {address:#x} is empty")]
    EmptyBuffer {
        /// Guest-physical.
        address: u64,
    },
    /// Device-readable after device-writable (2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    ReadableAfterWritable,
    /// More bytes than the device takes in one request.
    #[error("the chain's buffers exceed {limit} bytes")]
    TooManyBytes {
        /// The device's limit for this direction.
        limit: u32,
    },
    /// An indirect table that was not negotiated, is nested, has a successor (2.7.5.3.1) or is
    /// marked writable.
    #[error("an indirect descriptor where none is allowed")]
    MisplacedIndirect,
    /// The length of an indirect table is no number of descriptors between 1 and the queue's size.
    #[error("an indirect table of {bytes} bytes for a queue of {size}")]
    BadIndirectLength {
        /// The table's length.
        bytes: u32,
        /// Entries of the queue.
        size: u16,
    },
}

/// A request: what the device reads, then what it writes. Must be answered with
/// [`LiveQueue::complete`](crate::LiveQueue::complete) under its `head`.
#[derive(Debug)]
pub struct Chain<'m> {
    /// The index that names the chain in the used ring.
    pub head: u16,
    /// Device-readable bytes.
    pub readable: Readable<'m>,
    /// Device-writable bytes.
    pub writable: Writable<'m>,
}

/// Where descriptors are read from: the ring's own table, or an indirect one.
#[derive(Clone, Copy)]
struct Table {
    address: GuestAddress,
    size: u16,
    indirect: bool,
}

impl Table {
    fn read(self, memory: &GuestMemory, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.size {
            return Err(ChainError::IndexOutsideTable {
                index,
                size: self.size,
            });
        }
        let offset = u64::from(index) * size_of::<Descriptor>() as u64;
        let address = self.address.0.wrapping_add(offset);
        if address < self.address.0 {
            return Err(ChainError::DescriptorOutsideMemory { address });
        }
        // Copied once: the guest may change it meanwhile, but not what is judged and used here.
        memory
            .read_obj(GuestAddress(address))
            .map_err(|_| ChainError::DescriptorOutsideMemory { address })
    }
}

impl<'m> Chain<'m> {
    /// Walks the chain that begins at `head` of a ring's descriptor table.
    ///
    /// # Errors
    /// When any part of it breaks a rule; the device then sees nothing of it.
    pub(crate) fn parse(
        memory: &'m GuestMemory,
        table: GuestAddress,
        queue_size: u16,
        head: u16,
        limits: ChainLimits,
    ) -> Result<Self, ChainError> {
        let mut chain = Parts::new(memory, limits);
        let mut table = Table {
            address: table,
            size: queue_size,
            indirect: false,
        };
        let mut index = head;
        let mut left = queue_size;
        loop {
            let descriptor = table.read(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                table = follow_indirect(table, &descriptor, queue_size, limits)?;
                index = 0;
                continue;
            }
            left = left
                .checked_sub(1)
                .ok_or(ChainError::Loop { size: queue_size })?;
            chain.add(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(Self {
                    head,
                    readable: Readable(chain.readable),
                    writable: Writable(chain.writable),
                });
            }
            index = descriptor.next();
        }
    }
}

fn follow_indirect(
    table: Table,
    descriptor: &Descriptor,
    queue_size: u16,
    limits: ChainLimits,
) -> Result<Table, ChainError> {
    // Linux sets no WRITE here and 2.7.5.3.2 lets a device ignore it; a driver that sets it is
    // confused enough not to be served.
    if !limits.indirect || table.indirect || descriptor.has_next() || descriptor.is_write_only() {
        return Err(ChainError::MisplacedIndirect);
    }
    let bytes = descriptor.len();
    let entry = size_of::<Descriptor>() as u32;
    match u16::try_from(bytes / entry) {
        Ok(size) if bytes.is_multiple_of(entry) && (1..=queue_size).contains(&size) => Ok(Table {
            address: descriptor.addr(),
            size,
            indirect: true,
        }),
        _ => Err(ChainError::BadIndirectLength {
            bytes,
            size: queue_size,
        }),
    }
}

/// The chain so far.
struct Parts<'m> {
    memory: &'m GuestMemory,
    limits: ChainLimits,
    readable: Pieces<'m>,
    writable: Pieces<'m>,
}

impl<'m> Parts<'m> {
    fn new(memory: &'m GuestMemory, limits: ChainLimits) -> Self {
        Self {
            memory,
            limits,
            readable: Pieces::default(),
            writable: Pieces::default(),
        }
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        let (address, bytes) = (descriptor.addr(), descriptor.len());
        if bytes == 0 {
            return Err(ChainError::EmptyBuffer { address: address.0 });
        }
        let (part, limit) = if descriptor.is_write_only() {
            (&mut self.writable, self.limits.max_writable)
        } else if self.writable.left() > 0 {
            return Err(ChainError::ReadableAfterWritable);
        } else {
            (&mut self.readable, self.limits.max_readable)
        };
        if part.left() as u64 + u64::from(bytes) > u64::from(limit) {
            return Err(ChainError::TooManyBytes { limit });
        }
        // A buffer may span regions that are adjacent for the guest and not here.
        for piece in self.memory.get_slices(address, bytes as usize) {
            part.push(piece.map_err(|_| ChainError::BufferOutsideMemory {
                address: address.0,
                bytes,
            })?);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
