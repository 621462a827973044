//! The memory device (virtio 1.2, 5.15, "virtio-mem"): memory that is plugged and unplugged in blocks
//! while the guest runs.
//!
//! The host says how much it wants the guest to have ([`Mem::request`]); the driver plugs and unplugs
//! blocks of the region until it has that. Of an unplugged block the pages go back to the host at
//! once.
//!
//! ```text
//!   host: requested ----config change----> driver
//!                                            |  PLUG blocks     only up to `requested`
//!                                            |  UNPLUG blocks   the pages are freed
//!   Backing (the monitor's): told before a block is plugged and after it is unplugged
//! ```
//!
//! Nothing but this device's word keeps a hostile guest from touching unplugged blocks: the monitor's
//! [`Backing`] does, by what it maps into the guest, and the pod's memory limit bounds it anyway.

mod blocks;

use std::{io, ops::Range};

use isopod_memory::give_back_range;
use isopod_virtio::{
    Chain, ChainLimits, ConfigSpace, Device, DeviceCounters, DeviceError, DeviceStateError,
    DeviceType, Event, Rings, feature,
};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

use blocks::{Blocks, Plugged};

/// The smallest block: the size of a large page, which Linux can plug on its own.
pub const MIN_BLOCK: u64 = 2 << 20;
/// The largest region: a bitmap of 32 KiB.
const MAX_BLOCKS: u64 = 1 << 18;

const QUEUE_SIZE: u16 = 64;
const REQUEST: usize = 24;
const ANSWER: usize = 10;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: 256,
    max_writable: 256,
    indirect: false,
};

const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// What the monitor does when blocks come and go.
pub trait Backing: Send + 'static {
    /// Makes guest-physical memory usable. Called before the driver is told that it may use it.
    ///
    /// # Errors
    /// When that cannot be now; the driver tries again later.
    fn plug(&mut self, memory: Range<u64>) -> io::Result<()>;

    /// Makes guest-physical memory unusable. Its pages have been freed.
    fn unplug(&mut self, memory: Range<u64>);
}

/// Does nothing: for a region that is mapped as a whole from the beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysMapped;

impl Backing for AlwaysMapped {
    fn plug(&mut self, _memory: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn unplug(&mut self, _memory: Range<u64>) {}
}

/// Where the region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemConfig {
    /// Guest-physical address; a multiple of the block size.
    pub start: u64,
    /// Length; a multiple of the block size.
    pub bytes: u64,
    /// What is plugged at once; a power of two, [`MIN_BLOCK`] or more.
    pub block: u64,
}

/// A region that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?}: the block must be a power of two of 2 MiB or more, start and length multiples of it, \
     with 1 to 2^18 blocks below 2^64"
)]
pub struct MemError(MemConfig);

/// The host asked for more than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are no multiple of {block}, or more than the region's {most}")]
pub struct RequestError {
    bytes: u64,
    block: u64,
    most: u64,
}

/// A memory device; nothing is plugged at first.
pub struct Mem {
    state: MemState,
    backing: Box<dyn Backing>,
    guest_errors: u64,
    denied: u64,
    busy: u64,
}

/// What is plugged, and what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemState {
    blocks: Blocks,
    requested: u64,
}

impl Mem {
    /// Offers a region of guest memory.
    ///
    /// # Errors
    /// When the region cannot be divided into blocks.
    pub fn new(config: MemConfig, backing: impl Backing) -> Result<Self, MemError> {
        let MemConfig {
            start,
            bytes,
            block,
        } = config;
        let fits = block.is_power_of_two()
            && block >= MIN_BLOCK
            && start.is_multiple_of(block)
            && bytes.is_multiple_of(block)
            && (1..=MAX_BLOCKS).contains(&(bytes / block))
            && start.checked_add(bytes).is_some();
        if !fits {
            return Err(MemError(config));
        }
        Ok(Self {
            state: MemState {
                blocks: Blocks::new(start, block, bytes / block),
                requested: 0,
            },
            backing: Box::new(backing),
            guest_errors: 0,
            denied: 0,
            busy: 0,
        })
    }

    /// Asks the guest to have this much of the region.
    ///
    /// # Errors
    /// When the region has not so much, or it is no whole number of blocks.
    pub fn request(&mut self, bytes: u64) -> Result<(), RequestError> {
        let (block, most) = (self.state.blocks.block, self.state.blocks.bytes());
        if bytes > most || !bytes.is_multiple_of(block) {
            return Err(RequestError { bytes, block, most });
        }
        self.state.requested = bytes;
        Ok(())
    }

    /// How much the guest has, in bytes.
    pub fn plugged(&self) -> u64 {
        self.state.blocks.plugged_bytes()
    }

    fn answer(&mut self, mut chain: Chain<'_>, memory: &isopod_memory::GuestMemory) -> u32 {
        let mut request = [0; REQUEST];
        let (answer, state) = match chain.readable.read(&mut request) {
            Ok(()) => self.perform(&request, memory),
            Err(_) => (ERROR, 0),
        };
        match answer {
            ERROR => self.guest_errors += 1,
            NACK => self.denied += 1,
            BUSY => self.busy += 1,
            _ => {}
        }
        let mut bytes = [0; ANSWER];
        let [a, b, _, _, _, _, _, _, c, d] = &mut bytes;
        [*a, *b] = answer.to_le_bytes();
        [*c, *d] = state.to_le_bytes();
        match chain.writable.write(&bytes) {
            Ok(()) => ANSWER as u32,
            Err(_) => {
                self.guest_errors += 1;
                0
            }
        }
    }

    fn perform(
        &mut self,
        request: &[u8; REQUEST],
        memory: &isopod_memory::GuestMemory,
    ) -> (u16, u16) {
        let [a, b, _, _, _, _, _, _, c, d, e, f, g, h, i, j, k, l, ..] = *request;
        let kind = u16::from_le_bytes([a, b]);
        let address = u64::from_le_bytes([c, d, e, f, g, h, i, j]);
        let count = u16::from_le_bytes([k, l]);
        // PLUG, UNPLUG, UNPLUG_ALL, STATE (5.15.6)
        if kind == 2 {
            for run in self.state.blocks.runs() {
                self.unplug(run, memory);
            }
            return (ACK, 0);
        }
        let Some(range) = self.state.blocks.range(address, count) else {
            return (ERROR, 0);
        };
        let state = self.state.blocks.state(range.clone());
        match (kind, state) {
            (0, Plugged::None) => (self.plug(range), 0),
            (1, Plugged::All) => {
                self.unplug(range, memory);
                (ACK, 0)
            }
            (3, Plugged::All) => (ACK, 0),
            (3, Plugged::None) => (ACK, 1),
            (3, Plugged::Some) => (ACK, 2),
            _ => (ERROR, 0),
        }
    }

    fn plug(&mut self, range: Range<u64>) -> u16 {
        let MemState { blocks, requested } = &mut self.state;
        let more = (range.end - range.start) * blocks.block;
        if blocks.plugged_bytes() + more > *requested {
            return NACK;
        }
        match self.backing.plug(blocks.addresses(&range)) {
            Ok(()) => {
                blocks.set(range, true);
                ACK
            }
            Err(_) => BUSY,
        }
    }

    fn unplug(&mut self, range: Range<u64>, memory: &isopod_memory::GuestMemory) {
        let blocks = &mut self.state.blocks;
        let addresses = blocks.addresses(&range);
        let bytes = usize::try_from(addresses.end - addresses.start).unwrap_or(usize::MAX);
        if let Err(error) = give_back_range(memory, addresses.start, bytes) {
            // The guest does not use them any more, which is what it asked for.
            tracing::warn!(%error, ?addresses, "mem: unplugged pages stay allocated");
        }
        blocks.set(range, false);
        self.backing.unplug(addresses);
    }
}

impl Device for Mem {
    type State = MemState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Memory
    }

    fn features(&self) -> u64 {
        // VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
        1 << 1 | feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        smallvec![QUEUE_SIZE]
    }

    /// `struct virtio_mem_config`; all of the region is usable from the beginning.
    fn config(&self) -> ConfigSpace {
        let MemState { blocks, requested } = &self.state;
        let node = 0;
        [
            blocks.block,
            node,
            blocks.start,
            blocks.bytes(),
            blocks.bytes(),
            blocks.plugged_bytes(),
            *requested,
        ]
        .map(u64::to_le_bytes)
        .concat()
        .into()
    }

    fn handle(&mut self, _event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let memory = rings.memory().clone();
        let view = rings.config_view();
        rings.answer_each(0, LIMITS, |chain| {
            let written = self.answer(chain, &memory);
            // `plugged_size` follows the driver's own requests, and is no news to it (5.15.4).
            view.show(self.config());
            written
        })
    }

    /// What is plugged stays so: a driver that starts over asks for the state, or unplugs all.
    fn reset(&mut self) {
        let Self {
            state: _,
            backing: _,
            guest_errors: _,
            denied: _,
            busy: _,
        } = self;
    }

    fn save(&self) -> MemState {
        self.state.clone()
    }

    fn restore(&mut self, state: MemState) -> Result<(), DeviceStateError> {
        let here = &self.state.blocks;
        let differs =
            |field, saved: String, here: String| Err(DeviceStateError { field, saved, here });
        let plausible = here.is_same_region(&state.blocks)
            && state.requested <= here.bytes()
            && state.requested.is_multiple_of(here.block);
        if !plausible {
            let region =
                |b: &Blocks| format!("{} blocks of {} at {:#x}", b.count, b.block, b.start);
            return differs("the region", region(&state.blocks), region(here));
        }
        for run in state.blocks.runs() {
            if let Err(error) = self.backing.plug(state.blocks.addresses(&run)) {
                return differs("what can be plugged", format!("{run:?}"), error.to_string());
            }
        }
        self.state = state;
        Ok(())
    }

    fn counters(&self) -> DeviceCounters {
        vec![
            ("plugged_bytes", self.plugged()),
            ("requested_bytes", self.state.requested),
            ("guest_errors", self.guest_errors),
            ("denied", self.denied),
            ("busy", self.busy),
        ]
    }
}

#[cfg(test)]
mod tests;
