//! The balloon (virtio 1.2, 5.5): memory that the guest does not need, given back to the host.
//!
//! ```text
//!   free pages, reported by the driver as they come about   --reporting-->  freed, nothing to ask
//!   pages that the host asks for (target)                   --inflate---->  freed
//!                                                           <--deflate---   the guest takes them back,
//!                                                                           itself when it runs out
//!   statistics, one buffer that goes to and fro             --stats------>  asked for by the host
//! ```
//!
//! Pages come back by being touched: the device need not do anything to deflate.

use isopod_memory::{GuestMemory, give_back, give_back_range};
use isopod_virtio::{
    Chain, ChainLimits, ConfigSpace, Device, DeviceCounters, DeviceError, DeviceStateError,
    DeviceType, Event, Readable, Rings, feature,
};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// The unit of targets: 4 KiB, whatever the guest's pages are (5.5.6).
pub const PAGE: u64 = 4096;

const STATS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;

const QUEUE_SIZE: u16 = 128;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;

/// Page numbers in one buffer at most; Linux sends 256.
const MAX_PAGES: usize = 1024;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: 4 * MAX_PAGES as u32,
    max_writable: 0,
    indirect: false,
};

/// Reported pages are described by the buffers themselves: 32 of 4 MiB and more in Linux.
const REPORT_LIMITS: ChainLimits = ChainLimits {
    max_readable: 0,
    max_writable: u32::MAX,
    indirect: false,
};

/// Entries of one statistics buffer at most; the specification knows ten.
const MAX_STATS: usize = 32;
const STAT: usize = 10;

/// What the guest says about its memory (5.5.6.3): as it likes, since it is the guest's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestMemoryStats {
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses.
    pub free: Option<u64>,
    /// Bytes that there are.
    pub total: Option<u64>,
    /// Bytes that could be had without swapping.
    pub available: Option<u64>,
    /// Bytes that could be freed at once.
    pub caches: Option<u64>,
}

impl GuestMemoryStats {
    fn set(&mut self, tag: u16, value: u64) {
        let field = match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            _ => return,
        };
        *field = Some(value);
    }
}

/// A balloon, empty at first.
#[derive(Debug, Default)]
pub struct Balloon {
    state: BalloonState,
    /// The host wants new statistics.
    stats_due: bool,
    inflated: u64,
    deflated: u64,
    reported_bytes: u64,
    freed_bytes: u64,
    /// Pages that the host could not take back.
    host_errors: u64,
    guest_errors: u64,
}

/// The balloon as data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {
    target: u32,
    actual: u32,
    poison: u32,
    /// The statistics buffer, if the device has it.
    stats_head: Option<u16>,
    stats: Option<GuestMemoryStats>,
}

impl Balloon {
    /// Asks the guest to give up, or to take back, until it has given up this many pages of 4 KiB.
    pub fn set_target(&mut self, pages: u32) {
        self.state.target = pages;
    }

    /// Pages that the guest says it has given up.
    pub fn actual(&self) -> u32 {
        self.state.actual
    }

    /// What the guest said last.
    pub fn stats(&self) -> Option<GuestMemoryStats> {
        self.state.stats
    }

    /// Asks the guest for new statistics; they arrive when it gets to it.
    pub fn refresh_stats(&mut self) {
        self.stats_due = true;
    }

    fn inflate(&mut self, chain: &mut Chain<'_>, memory: &GuestMemory) {
        let mut pages = SmallVec::<[u64; 256]>::new();
        while let Some(page) = take(&mut chain.readable).map(u32::from_le_bytes) {
            pages.push(u64::from(page) * PAGE);
        }
        self.guest_errors += u64::from(chain.readable.left() > 0);
        self.inflated += pages.len() as u64;
        // Linux takes whole blocks apart, so that neighbours follow each other, up or down.
        pages.sort_unstable();
        for run in pages.chunk_by(|page, next| *next == page + PAGE) {
            let Some(first) = run.first() else { continue };
            match give_back_range(memory, *first, run.len() * PAGE as usize) {
                Ok(freed) => self.freed_bytes += freed as u64,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                    self.guest_errors += 1;
                }
                Err(_) => self.host_errors += 1,
            }
        }
    }

    fn report(&mut self, chain: &Chain<'_>) {
        self.reported_bytes += chain.writable.left() as u64;
        if self.state.poison != 0 {
            // The guest expects its pattern in free pages (5.5.6.5): they must stay as they are.
            return;
        }
        for piece in chain.writable.slices() {
            match give_back(piece) {
                Ok(freed) => self.freed_bytes += freed as u64,
                Err(_) => self.host_errors += 1,
            }
        }
    }

    fn serve_stats(&mut self, queue: usize, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let Self {
            state,
            stats_due,
            guest_errors,
            ..
        } = self;
        rings.with(queue, LIMITS, |queue| {
            // The driver has one buffer on its way; of another the first is given back at once.
            for _ in 0..QUEUE_SIZE {
                let Some(mut chain) = queue.pop()? else {
                    break;
                };
                match read_stats(&mut chain.readable) {
                    Some(stats) => state.stats = Some(stats),
                    None => *guest_errors += 1,
                }
                if let Some(head) = state.stats_head.replace(chain.head) {
                    queue.complete(head, 0)?;
                }
            }
            queue.listen()?;
            if *stats_due && let Some(head) = state.stats_head.take() {
                *stats_due = false;
                queue.complete(head, 0)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// `struct virtio_balloon_stat`s: a tag of 2 bytes, a value of 8.
fn read_stats(readable: &mut Readable<'_>) -> Option<GuestMemoryStats> {
    let mut stats = GuestMemoryStats::default();
    for _ in 0..MAX_STATS {
        if readable.left() < STAT {
            break;
        }
        let tag = u16::from_le_bytes(take(readable)?);
        stats.set(tag, u64::from_le_bytes(take(readable)?));
    }
    (readable.left() == 0).then_some(stats)
}

fn take<const N: usize>(readable: &mut Readable<'_>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    readable.read(&mut bytes).ok().map(|()| bytes)
}

impl Device for Balloon {
    type State = BalloonState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        STATS
            | DEFLATE_ON_OOM
            | PAGE_POISON
            | REPORTING
            | feature::EVENT_IDX
            | feature::INDIRECT_DESC
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        smallvec![QUEUE_SIZE; 4]
    }

    /// `struct virtio_balloon_config`.
    fn config(&self) -> ConfigSpace {
        let BalloonState {
            target,
            actual,
            poison,
            ..
        } = self.state;
        let free_page_hint = 0;
        [target, actual, free_page_hint, poison]
            .map(u32::to_le_bytes)
            .concat()
            .into()
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let Ok(bytes) = <[u8; 4]>::try_from(bytes) else {
            return;
        };
        match offset {
            4 => self.state.actual = u32::from_le_bytes(bytes),
            12 => self.state.poison = u32::from_le_bytes(bytes),
            _ => {}
        }
    }

    fn handle(&mut self, event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let Event::Queue(queue) = event else {
            return Ok(());
        };
        // Drivers number only the queues that the features bring about, as Linux does over MMIO.
        let stats = rings.negotiated(STATS).then_some(DEFLATE + 1);
        let reporting = stats.unwrap_or(DEFLATE) + 1;
        match queue {
            INFLATE => {
                let memory = rings.memory().clone();
                rings.answer_each(INFLATE, LIMITS, |mut chain| {
                    self.inflate(&mut chain, &memory);
                    0
                })
            }
            DEFLATE => rings.answer_each(DEFLATE, LIMITS, |chain| {
                self.deflated += chain.readable.left() as u64 / 4;
                0
            }),
            queue if Some(queue) == stats => self.serve_stats(queue, rings),
            queue if queue == reporting && rings.negotiated(REPORTING) => {
                rings.answer_each(queue, REPORT_LIMITS, |chain| {
                    self.report(&chain);
                    0
                })
            }
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        let Self {
            state,
            stats_due,
            inflated: _,
            deflated: _,
            reported_bytes: _,
            freed_bytes: _,
            host_errors: _,
            guest_errors: _,
        } = self;
        let BalloonState {
            // The host's wish, not the driver's.
            target: _,
            actual,
            poison,
            stats_head,
            stats,
        } = state;
        (*actual, *poison, *stats_head, *stats) = (0, 0, None, None);
        *stats_due = false;
    }

    fn save(&self) -> BalloonState {
        self.state
    }

    fn restore(&mut self, state: BalloonState) -> Result<(), DeviceStateError> {
        if state.stats_head.is_some_and(|head| head >= QUEUE_SIZE) {
            return Err(DeviceStateError {
                field: "the statistics buffer",
                saved: format!("{:?}", state.stats_head),
                here: format!("below {QUEUE_SIZE}"),
            });
        }
        self.state = state;
        Ok(())
    }

    fn counters(&self) -> DeviceCounters {
        vec![
            ("target_pages", self.state.target.into()),
            ("actual_pages", self.state.actual.into()),
            ("inflated_pages", self.inflated),
            ("deflated_pages", self.deflated),
            ("reported_bytes", self.reported_bytes),
            ("freed_bytes", self.freed_bytes),
            ("host_errors", self.host_errors),
            ("guest_errors", self.guest_errors),
        ]
    }
}

#[cfg(test)]
#[path = "balloon_tests.rs"]
mod tests;
