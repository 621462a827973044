//! The persistent memory device (virtio 1.2, 5.19): where the guest image is in guest-physical memory.
//!
//! The device says where; the mapping is the monitor's, which makes it read-only for the guest in the
//! page tables of the hypervisor (`KVM_MEM_READONLY`). All guests of a node thus share one copy of
//! the image in the host's page cache, and none can change it.

use isopod_virtio::{
    Chain, ChainLimits, ConfigSpace, Device, DeviceCounters, DeviceError, DeviceStateError,
    DeviceType, Event, Rings, feature,
};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// What Linux asks of a memory region that it uses with DAX: sections of 2 MiB
/// (`memremap_compat_align`).
pub const ALIGNMENT: u64 = 2 << 20;

const QUEUE_SIZE: u16 = 16;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH`.
const FLUSH: u32 = 0;
/// 5.19.6.1: a request that failed is answered with all ones.
const FAILED: u32 = u32::MAX;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: 64,
    max_writable: 64,
    indirect: false,
};

/// A region that cannot be offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bytes:#x} bytes at {start:#x}: start and length must be multiples of 2 MiB, not 0, below 2^64"
)]
pub struct PmemError {
    /// Guest-physical.
    pub start: u64,
    /// The region's length.
    pub bytes: u64,
}

/// A region of read-only memory.
#[derive(Debug)]
pub struct Pmem {
    region: PmemState,
    flushes: u64,
    guest_errors: u64,
}

/// Where the region is: what a driver has mapped must be there again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemState {
    /// Guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Pmem {
    /// Offers `bytes` bytes from the guest-physical address `start`, which the monitor has mapped
    /// there; both multiples of [`ALIGNMENT`].
    ///
    /// # Errors
    /// When the guest could not use the region.
    pub fn new(start: u64, bytes: u64) -> Result<Self, PmemError> {
        let aligned = start.is_multiple_of(ALIGNMENT) && bytes.is_multiple_of(ALIGNMENT);
        if !aligned || bytes == 0 || start.checked_add(bytes).is_none() {
            return Err(PmemError { start, bytes });
        }
        Ok(Self {
            region: PmemState { start, bytes },
            flushes: 0,
            guest_errors: 0,
        })
    }

    /// What is read-only is always flushed.
    fn answer(&mut self, mut chain: Chain<'_>) -> u32 {
        let mut request = [0; 4];
        let understood =
            chain.readable.read(&mut request).is_ok() && u32::from_le_bytes(request) == FLUSH;
        let answer: u32 = if understood { 0 } else { FAILED };
        let answered = chain.writable.write(&answer.to_le_bytes()).is_ok();
        match understood && answered {
            true => self.flushes += 1,
            false => self.guest_errors += 1,
        }
        if answered { 4 } else { 0 }
    }
}

impl Device for Pmem {
    type State = PmemState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Pmem
    }

    fn features(&self) -> u64 {
        feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        smallvec![QUEUE_SIZE]
    }

    fn config(&self) -> ConfigSpace {
        let PmemState { start, bytes } = self.region;
        [start.to_le_bytes(), bytes.to_le_bytes()].concat().into()
    }

    fn handle(&mut self, _event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        rings.answer_each(0, LIMITS, |chain| self.answer(chain))
    }

    fn reset(&mut self) {
        let Self {
            region: _,
            flushes: _,
            guest_errors: _,
        } = self;
    }

    fn save(&self) -> PmemState {
        self.region
    }

    fn restore(&mut self, state: PmemState) -> Result<(), DeviceStateError> {
        if state == self.region {
            return Ok(());
        }
        Err(DeviceStateError {
            field: "the region",
            saved: format!("{state:?}"),
            here: format!("{:?}", self.region),
        })
    }

    fn counters(&self) -> DeviceCounters {
        vec![
            ("flushes", self.flushes),
            ("guest_errors", self.guest_errors),
        ]
    }
}

#[cfg(test)]
mod tests {
    use isopod_virtio::testing::{Buffer, MmioDriver};
    use rstest::rstest;

    use super::*;

    const START: u64 = 4 << 30;

    fn pmem() -> Pmem {
        Pmem::new(START, 8 << 20).unwrap()
    }

    #[rstest]
    #[case(START + 4096, 8 << 20)]
    #[case(START, 4096)]
    #[case(START, 0)]
    #[case(u64::MAX - ALIGNMENT + 1, ALIGNMENT)]
    fn a_region_that_linux_could_not_use_is_refused(#[case] start: u64, #[case] bytes: u64) {
        assert_eq!(
            Pmem::new(start, bytes).unwrap_err(),
            PmemError { start, bytes }
        );
    }

    #[test]
    fn the_driver_learns_where_the_region_is() {
        let (driver, _control) = MmioDriver::attach(pmem());
        let config = driver.config(16);
        assert_eq!(config[..8], START.to_le_bytes());
        assert_eq!(config[8..], (8u64 << 20).to_le_bytes());
    }

    #[rstest]
    #[case::flush(&[0, 0, 0, 0], 4, 4, 0)]
    #[case::another_request(&[1, 0, 0, 0], 4, 4, u32::MAX)]
    #[case::half_a_request(&[0, 0], 4, 4, u32::MAX)]
    #[case::no_room(&[0, 0, 0, 0], 3, 0, 0xffee_ddcc)]
    fn requests_are_answered(
        #[case] request: &[u8],
        #[case] room: u32,
        #[case] written: u32,
        #[case] answer: u32,
    ) {
        let (mut driver, _control) = MmioDriver::attach(pmem());
        let mut queues = driver.start(0, &[16]);
        let at = driver.ram.allocate(64);
        driver.ram.write(at, request);
        driver.ram.write(at + 32, &0xffee_ddcc_u32.to_le_bytes());
        queues[0].offer(&[
            Buffer::Readable(at, request.len() as u32),
            Buffer::Writable(at + 32, room),
        ]);
        driver.notify(0);
        assert_eq!(driver.used(&mut queues[0]).written, written);
        assert_eq!(driver.ram.read(at + 32, 4), answer.to_le_bytes());
    }

    #[test]
    fn it_is_restored_only_where_it_was() {
        let mut elsewhere = Pmem::new(START + ALIGNMENT, 8 << 20).unwrap();
        assert!(elsewhere.restore(pmem().save()).is_err());
        assert!(pmem().restore(pmem().save()).is_ok());
    }
}
