//! The block device (virtio 1.2, 5.2): a file or a block device of the host as a disk of the guest.
//!
//! A [`Blk`] is a slot: it may be empty, with capacity 0, until a [`Disk`] arrives or after it has
//! left; the driver is told by a configuration change. What the driver negotiates before (read-only,
//! discard) is the slot's, not the disk's.
//!
//! Requests run on the device's own thread, one after another, or side by side by io_uring
//! ([`Engine`]); straight between the guest's pages and the file: there is no buffer here, and no size
//! that a driver writes allocates anything.
//!
//! | file | job |
//! |---|---|
//! | `mod.rs` | the slot: features, configuration, queue, rate |
//! | `request.rs` | from a chain to one operation, and its status |
//! | `flight.rs` | operations on their way, side by side |
//! | `disk.rs` | what is behind: read, write, flush, discard, zeroes |

mod disk;
mod flight;
mod request;

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use isopod_virtio::{
    ChainLimits, ConfigSpace, Device, DeviceCounters, DeviceError, DeviceStateError, DeviceType,
    Event, Rings, feature,
};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};

pub use self::{
    disk::{Disk, DiskError, SECTOR},
    request::{MAX_DATA, MAX_ZEROES},
};
use crate::{
    rate::{Limiter, RateLimit},
    timer::Timer,
};
use flight::Flight;
use request::{Context, Counters, Progress, Served};

const QUEUE_SIZE: u16 = 256;
/// Header and status need a descriptor each.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// What file systems on the host like to be asked for.
const BLOCK_SIZE: u32 = 4096;
/// Requests in one round: each may wait for the disk, and the driver's signal waits for all of them.
const REQUESTS_PER_ROUND: usize = 32;
/// Sectors of one discard; a multiple of what file systems allocate.
const MAX_DISCARD: u32 = 1 << 21;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: MAX_DATA + 64,
    max_writable: MAX_DATA + 64,
    indirect: false,
};

/// What distinguishes one slot from another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlkConfig {
    /// What the guest knows the disk by (`/dev/disk/by-id/virtio-*`); at most 20 bytes.
    pub serial: String,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// How much it may do.
    #[serde(default)]
    pub rate: RateLimit,
    /// How it does it.
    #[serde(default)]
    pub engine: Engine,
}

/// How requests are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// One after another, each a system call: little for a filter of system calls to allow, and the
    /// host's page cache is quick.
    #[default]
    OneByOne,
    /// Many at once, by io_uring(7), of which the device can only read, write and sync: for disks that
    /// gain by it. Where the kernel forbids it the device does one after another, and says so.
    SideBySide,
}

/// A slot could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The serial does not fit.
    #[error("serial {0:?} is longer than 20 bytes")]
    Serial(String),
    /// A disk that can only be read, in a slot that promises more.
    #[error("the slot is writable, its disk is not")]
    ReadOnlyDisk,
    /// No timer.
    #[error("make a timer: {0}")]
    Timer(#[source] std::io::Error),
}

/// A slot for a disk.
pub struct Blk {
    config: BlkConfig,
    disk: Option<Disk>,
    limiter: Limiter,
    timer: Timer,
    /// If it is the engine. Made before the device's thread is confined, so that this thread makes none.
    flight: Option<Flight>,
    counters: Counters,
}

/// A slot as data. The disk's content is no part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlkState {
    /// What the guest knows the disk by.
    pub serial: String,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// The disk's length, or 0 of an empty slot.
    pub sectors: u64,
}

impl Blk {
    /// An empty slot.
    ///
    /// # Errors
    /// When the serial is too long, or the host has no descriptor left.
    pub fn new(config: BlkConfig) -> Result<Self, BlkError> {
        if config.serial.len() > VIRTIO_BLK_ID_BYTES as usize {
            return Err(BlkError::Serial(config.serial));
        }
        let timer = Timer::new().map_err(BlkError::Timer)?;
        let flight = match config.engine {
            Engine::OneByOne => None,
            Engine::SideBySide => Flight::new(QUEUE_SIZE, timer.as_fd())
                .inspect_err(
                    |error| tracing::warn!(%error, "blk: no io_uring; one request after another"),
                )
                .ok(),
        };
        Ok(Self {
            limiter: Limiter::new(config.rate, Instant::now()),
            config,
            disk: None,
            timer,
            flight,
            counters: Counters::default(),
        })
    }

    /// Whether a disk is in the slot.
    #[must_use]
    pub fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Puts a disk into the slot, in place of the one that is there.
    ///
    /// # Errors
    /// When the slot is writable and the disk is not.
    pub fn insert(&mut self, disk: Disk) -> Result<(), BlkError> {
        if disk.read_only() && !self.config.read_only {
            return Err(BlkError::ReadOnlyDisk);
        }
        self.disk = Some(disk);
        Ok(())
    }

    /// Takes the disk out, flushed: requests fail from now on.
    ///
    /// # Errors
    /// When what was written may not have reached the disk; it is out nevertheless.
    pub fn remove(&mut self) -> std::io::Result<()> {
        if let Some(flight) = &mut self.flight {
            flight.wait()?;
        }
        match self.disk.take() {
            Some(disk) if !self.config.read_only => disk.flush(),
            Some(_) | None => Ok(()),
        }
    }

    /// Limits what the slot does from now on.
    pub fn limit(&mut self, rate: RateLimit) {
        self.config.rate = rate;
        self.limiter = Limiter::new(rate, Instant::now());
    }

    /// Answers what is done.
    fn land(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let Self {
            config,
            disk,
            flight,
            counters,
            ..
        } = self;
        let Some(flight) = flight else {
            return Ok(());
        };
        rings.with(0, LIMITS, |queue| {
            while let Some((head, pending, result)) = flight.done() {
                let mut context = Context {
                    disk: disk.as_ref(),
                    config,
                    counters,
                    flight: None,
                };
                let chain = queue.pop_again(head);
                let written = request::finish(chain, &pending, &result, &mut context);
                queue.complete(head, written)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn sectors(&self) -> u64 {
        self.disk.as_ref().map_or(0, Disk::sectors)
    }
}

impl Device for Blk {
    type State = BlkState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let any = feature::EVENT_IDX
            | feature::INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        match self.config.read_only {
            true => any | 1 << VIRTIO_BLK_F_RO,
            false => any | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        }
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        smallvec![QUEUE_SIZE]
    }

    /// `struct virtio_blk_config` (5.2.4) up to `write_zeroes_may_unmap`.
    fn config(&self) -> ConfigSpace {
        let mut space = ConfigSpace::new();
        space.extend_from_slice(&self.sectors().to_le_bytes());
        space.extend_from_slice(&[0; 4]); // size_max: not offered
        space.extend_from_slice(&SEGMENTS.to_le_bytes());
        space.extend_from_slice(&[0; 4]); // geometry: not offered
        space.extend_from_slice(&BLOCK_SIZE.to_le_bytes());
        space.extend_from_slice(&[0; 12]); // topology, writeback, num_queues: not offered
        space.extend_from_slice(&MAX_DISCARD.to_le_bytes());
        space.extend_from_slice(&1u32.to_le_bytes()); // ranges of one discard
        space.extend_from_slice(&(BLOCK_SIZE / SECTOR as u32).to_le_bytes());
        space.extend_from_slice(&((MAX_ZEROES / SECTOR) as u32).to_le_bytes());
        space.extend_from_slice(&1u32.to_le_bytes()); // ranges of one write-zeroes
        space.extend_from_slice(&[1, 0, 0, 0]); // write_zeroes_may_unmap
        space
    }

    fn handle(&mut self, _event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.land(rings)?;
        let Self {
            config,
            disk,
            limiter,
            timer,
            flight,
            counters,
        } = self;
        timer.stop();
        let memory = rings.memory().clone();
        let left = rings.with(0, LIMITS, |queue| {
            queue.quiet();
            for _ in 0..REQUESTS_PER_ROUND {
                if flight.as_ref().is_some_and(Flight::is_full) {
                    // Looked at again when something has landed.
                    return Ok(false);
                }
                if let Some(wait) = limiter.wait(Instant::now()) {
                    timer.arm(wait);
                    counters.throttled += 1;
                    return Ok(false);
                }
                let Some(chain) = queue.pop()? else {
                    if queue.listen()? {
                        queue.quiet();
                        continue;
                    }
                    return Ok(false);
                };
                let head = chain.head;
                let mut context = Context {
                    disk: disk.as_ref(),
                    config,
                    counters,
                    flight: flight.as_mut().map(|flight| (flight, &memory)),
                };
                match request::serve(chain, &mut context) {
                    Progress::Served(Served { written, bytes }) => {
                        queue.complete(head, written)?;
                        limiter.charge(bytes);
                    }
                    Progress::Started(bytes) => limiter.charge(bytes),
                }
            }
            Ok(true)
        })?;
        let submitted = flight.as_mut().is_none_or(Flight::submit);
        let full = flight.as_ref().is_some_and(Flight::is_full);
        // What the host had in memory is done already: answered in this round, without another sleep.
        self.land(rings)?;
        let room = full && !self.flight.as_ref().is_some_and(Flight::is_full);
        if left == Some(true) || !submitted || room {
            rings.again(0);
        }
        Ok(())
    }

    fn pause(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if let Some(flight) = &mut self.flight {
            flight.wait().map_err(|source| DeviceError::Host {
                act: "wait for the disk",
                source,
            })?;
        }
        self.land(rings)
    }

    fn reset(&mut self) {
        let Self {
            config: _,
            disk: _,
            // Not refilled: a driver could reset its way around the limit.
            limiter: _,
            timer,
            flight,
            counters: _,
        } = self;
        timer.stop();
        // What is on its way touches the guest's memory: waited for, and in vain only if the ring is of no
        // use any more.
        if flight.as_mut().is_some_and(|flight| !flight.abandon()) {
            *flight = None;
        }
    }

    fn host_events(&self) -> Option<BorrowedFd<'_>> {
        match &self.flight {
            Some(flight) => Some(flight.as_fd()),
            None => Some(self.timer.as_fd()),
        }
    }

    fn save(&self) -> BlkState {
        BlkState {
            serial: self.config.serial.clone(),
            read_only: self.config.read_only,
            sectors: self.sectors(),
        }
    }

    fn restore(&mut self, state: BlkState) -> Result<(), DeviceStateError> {
        let here = self.save();
        let differs = |field, saved: &dyn std::fmt::Debug, here: &dyn std::fmt::Debug| {
            Err(DeviceStateError {
                field,
                saved: format!("{saved:?}"),
                here: format!("{here:?}"),
            })
        };
        if state.read_only != here.read_only {
            return differs("read_only", &state.read_only, &here.read_only);
        }
        // An empty slot may be filled later; a disk of another size is another disk.
        if self.disk.is_some() && state.sectors != here.sectors {
            return differs("sectors", &state.sectors, &here.sectors);
        }
        self.config.serial = state.serial;
        Ok(())
    }

    fn counters(&self) -> DeviceCounters {
        self.counters.named()
    }
}

#[cfg(test)]
mod tests;
