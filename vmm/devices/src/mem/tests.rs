//! The memory device, as a driver sees it.

use std::sync::{Arc, Mutex};

use isopod_virtio::testing::{Buffer, DriverQueue, GuestRam, MmioDriver};
use rstest::rstest;

use super::*;

const BLOCK: u64 = MIN_BLOCK;
/// In the upper half of 32 MiB of memory: 8 blocks.
const CONFIG: MemConfig = MemConfig {
    start: 16 << 20,
    bytes: 16 << 20,
    block: BLOCK,
};

/// Whether it was plugged, and where.
type Act = (bool, Range<u64>);

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Act>>>);

impl Backing for Told {
    fn plug(&mut self, memory: Range<u64>) -> io::Result<()> {
        let mut told = self.0.lock().unwrap();
        // The last block is never to be had.
        if memory.end == CONFIG.start + CONFIG.bytes {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        told.push((true, memory));
        Ok(())
    }

    fn unplug(&mut self, memory: Range<u64>) {
        self.0.lock().unwrap().push((false, memory));
    }
}

struct Rig {
    driver: MmioDriver,
    control: isopod_virtio::Control<Mem>,
    queue: DriverQueue,
    told: Told,
}

fn rig(requested: u64) -> Rig {
    let told = Told::default();
    let mut mem = Mem::new(CONFIG, told.clone()).unwrap();
    mem.request(requested).unwrap();
    let (mut driver, control) = MmioDriver::attach_to(GuestRam::new(32 << 20), mem);
    let queue = driver.start(feature::EVENT_IDX, &[16]).remove(0);
    Rig {
        driver,
        control,
        queue,
        told,
    }
}

fn block(n: u64) -> u64 {
    CONFIG.start + n * BLOCK
}

impl Rig {
    /// Type and state of the answer.
    fn ask(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        let mut request = kind.to_le_bytes().to_vec();
        request.extend_from_slice(&[0; 6]);
        request.extend_from_slice(&address.to_le_bytes());
        request.extend_from_slice(&count.to_le_bytes());
        request.extend_from_slice(&[0; 6]);
        let at = self.driver.ram.allocate(64);
        self.driver.ram.write(at, &request);
        self.queue
            .offer(&[Buffer::Readable(at, 24), Buffer::Writable(at + 32, 10)]);
        self.driver.notify(0);
        assert_eq!(self.driver.used(&mut self.queue).written, 10);
        let answer = self.driver.ram.read(at + 32, 10);
        let half = |n: usize| u16::from_le_bytes([answer[n], answer[n + 1]]);
        (half(0), half(8))
    }

    fn config(&self, field: usize) -> u64 {
        let config = self.driver.config(56);
        u64::from_le_bytes(config[8 * field..8 * field + 8].try_into().unwrap())
    }
}

#[test]
fn blocks_are_plugged_up_to_what_is_wanted_and_unplugged_again() {
    let mut rig = rig(4 * BLOCK);
    assert_eq!(
        (rig.config(0), rig.config(2), rig.config(3)),
        (BLOCK, CONFIG.start, CONFIG.bytes)
    );
    assert_eq!(rig.ask(0, block(0), 3), (ACK, 0));
    assert_eq!(rig.ask(0, block(3), 2), (NACK, 0), "more than requested");
    assert_eq!(rig.ask(0, block(5), 1), (ACK, 0));
    assert_eq!(rig.config(5), 4 * BLOCK);
    for (address, count, state) in [(0, 3, 0), (3, 2, 1), (2, 2, 2)] {
        assert_eq!(rig.ask(3, block(address), count), (ACK, state));
    }

    rig.driver.ram.write(block(1), &[7; 4096]);
    rig.driver.ram.write(block(2), &[7; 4096]);
    assert_eq!(rig.ask(1, block(1), 1), (ACK, 0));
    assert_eq!(rig.driver.ram.read(block(1), 1), [0], "freed");
    assert_eq!(rig.driver.ram.read(block(2), 1), [7]);
    assert_eq!(rig.ask(2, 0, 0), (ACK, 0));
    assert_eq!(rig.config(5), 0);
    let told = rig.told.0.lock().unwrap().clone();
    assert_eq!(told[0], (true, block(0)..block(3)));
    assert_eq!(told[2], (false, block(1)..block(2)));
    assert_eq!(told.len(), 6, "{told:?}");
}

#[rstest]
#[case::plug_twice(0, block(0), 1)]
#[case::unplug_what_is_not(1, block(1), 1)]
#[case::unplug_more_than_is(1, block(0), 2)]
#[case::beyond_the_region(0, block(7), 2)]
#[case::before_the_region(0, 0, 1)]
#[case::unaligned(0, block(1) + 4096, 1)]
#[case::nothing(0, block(1), 0)]
#[case::address_that_wraps(3, u64::MAX - BLOCK + 1, u16::MAX)]
#[case::unknown(9, block(1), 1)]
fn what_cannot_be_is_an_error(#[case] kind: u16, #[case] address: u64, #[case] count: u16) {
    let mut rig = rig(4 * BLOCK);
    assert_eq!(rig.ask(0, block(0), 1), (ACK, 0));
    assert_eq!(rig.ask(kind, address, count), (ERROR, 0));
    assert_eq!(rig.config(5), BLOCK);
}

#[test]
fn what_the_host_has_not_is_tried_again_later() {
    let mut rig = rig(8 * BLOCK);
    assert_eq!(rig.ask(0, block(7), 1), (BUSY, 0));
    assert_eq!(rig.config(5), 0);
}

#[test]
fn the_host_changes_its_mind_and_the_driver_hears_it() {
    let rig = rig(0);
    let asked = rig.control.call(|mem| mem.request(2 * BLOCK)).unwrap();
    assert_eq!(asked, Ok(()));
    rig.driver.interrupt(2);
    assert_eq!(rig.config(6), 2 * BLOCK);
    for bytes in [BLOCK + 1, 9 * BLOCK] {
        assert!(
            rig.control
                .call(move |mem| mem.request(bytes))
                .unwrap()
                .is_err()
        );
    }
}

#[test]
fn what_is_plugged_survives_a_reset_and_a_save() {
    let mut rig = rig(4 * BLOCK);
    assert_eq!(rig.ask(0, block(2), 2), (ACK, 0));
    rig.queue = rig.driver.start(feature::EVENT_IDX, &[16]).remove(0);
    assert_eq!(rig.ask(3, block(2), 2), (ACK, 0));

    let state = rig.driver.save();
    let told = Told::default();
    let mem = Mem::new(CONFIG, told.clone()).unwrap();
    let (driver, control) = rig.driver.restore(mem, state.clone());
    let mut rig = Rig {
        driver,
        control,
        queue: rig.queue,
        told,
    };
    assert_eq!(rig.ask(3, block(2), 2), (ACK, 0));
    assert_eq!(rig.config(6), 4 * BLOCK);
    assert_eq!(rig.told.0.lock().unwrap()[0], (true, block(2)..block(4)));

    let half = MemConfig {
        bytes: 8 << 20,
        ..CONFIG
    };
    let (driver, _control) = MmioDriver::attach(Mem::new(half, AlwaysMapped).unwrap());
    assert!(driver.transport.restore(state).is_err());
}

#[rstest]
#[case(MemConfig { block: 1 << 20, ..CONFIG })]
#[case(MemConfig { block: 3 << 20, ..CONFIG })]
#[case(MemConfig { start: 4096, ..CONFIG })]
#[case(MemConfig { bytes: 0, ..CONFIG })]
#[case(MemConfig { bytes: (1 << 18) * BLOCK + BLOCK, ..CONFIG })]
fn a_region_without_whole_blocks_is_refused(#[case] config: MemConfig) {
    assert_eq!(Mem::new(config, AlwaysMapped).err(), Some(MemError(config)));
}
