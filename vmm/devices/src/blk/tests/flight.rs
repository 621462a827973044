//! Many requests at once: all are answered, and none outlives a save or a reset.

use std::collections::HashMap;

use isopod_virtio::testing::{Buffer, GuestRam};
use rstest::rstest;
use virtio_bindings::virtio_blk::*;

use super::*;

impl Rig {
    /// Offers reads of one sector each; where each head's answer will be, and what it is to be.
    fn offer_reads(&mut self, count: u64) -> HashMap<u16, (u64, u8)> {
        let ram = &mut self.driver.ram;
        (0..count)
            .map(|n| {
                let sector = n % SECTORS;
                let at = ram.allocate(16);
                ram.write(at, &header(VIRTIO_BLK_T_IN, sector));
                let answer = ram.allocate(513);
                let buffers = [Buffer::Readable(at, 16), Buffer::Writable(answer, 513)];
                (self.queue.offer(&buffers), (answer, sector as u8 + 1))
            })
            .collect()
    }

    fn expect_reads(&mut self, mut answers: HashMap<u16, (u64, u8)>) {
        while !answers.is_empty() {
            let used = self.driver.used(&mut self.queue);
            let (answer, byte) = answers.remove(&used.head).unwrap();
            assert_eq!(used.written, 513);
            let mut expected = vec![byte; 512];
            expected.push(VIRTIO_BLK_S_OK as u8);
            assert_eq!(self.driver.ram.read(answer, 513), expected);
        }
    }
}

#[rstest]
fn a_whole_ring_of_requests_is_served(
    #[values(Engine::OneByOne, Engine::SideBySide)] engine: Engine,
) {
    let mut rig = rig_of(engine);
    for _ in 0..3 {
        let answers = rig.offer_reads(128);
        rig.driver.notify(0);
        rig.expect_reads(answers);
    }
}

#[rstest]
fn what_is_on_its_way_is_done_before_a_save(
    #[values(Engine::OneByOne, Engine::SideBySide)] engine: Engine,
) {
    let mut rig = rig_of(engine);
    let answers = rig.offer_reads(100);
    rig.driver.notify(0);
    let state = rig.driver.save();
    let counters = rig.driver.transport.metrics().unwrap().device;
    let reads = counters.iter().find(|(n, _)| n == "reads").unwrap().1;
    assert_eq!(u64::from(state.registers.queues[0].next_used), reads);
    let mut other = Blk::new(BlkConfig {
        engine,
        ..config(false)
    })
    .unwrap();
    other.insert(open(&rig.file, true)).unwrap();
    let (driver, control) = rig.driver.restore(other, state);
    let mut rig = Rig {
        driver,
        control,
        ..rig
    };
    rig.expect_reads(answers);
}

#[test]
fn nothing_on_its_way_outlives_a_reset() {
    let mut rig = rig_of(Engine::SideBySide);
    for _ in 0..20 {
        rig.offer_reads(64);
        rig.driver.notify(0);
        rig.driver.reset();
        let before = rig.driver.ram.read(0, 1 << 20);
        assert!(rig.driver.ram.read(0, 1 << 20) == before);
        rig.driver.ram = GuestRam::over(rig.driver.ram.memory.clone(), 16 << 20);
        rig.driver.ram.write(0, &vec![0; 1 << 20]);
        rig.queue = rig.driver.start(feature::EVENT_IDX, &[256]).remove(0);
    }
    let answers = rig.offer_reads(64);
    rig.driver.notify(0);
    rig.expect_reads(answers);
}

#[test]
fn a_chain_that_is_offered_twice_is_answered_twice() {
    let mut rig = rig_of(Engine::SideBySide);
    let at = rig.driver.ram.allocate(16);
    rig.driver.ram.write(at, &header(VIRTIO_BLK_T_IN, 1));
    let answer = rig.driver.ram.allocate(513);
    let head = rig
        .queue
        .offer(&[Buffer::Readable(at, 16), Buffer::Writable(answer, 513)]);
    for _ in 0..30 {
        rig.queue.offer_head(head);
    }
    rig.driver.notify(0);
    for _ in 0..31 {
        rig.driver.until(|| rig.queue.take_plausible_used());
    }
    assert_eq!(rig.queue.take_plausible_used(), None);
}

#[test]
fn a_chain_that_changes_on_its_way_is_judged_again() {
    let mut rig = rig_of(Engine::SideBySide);
    let at = rig.driver.ram.allocate(16);
    rig.driver.ram.write(at, &header(VIRTIO_BLK_T_IN, 1));
    let answer = rig.driver.ram.allocate(513);
    for _ in 0..50 {
        let buffers = [Buffer::Readable(at, 16), Buffer::Writable(answer, 513)];
        let head = rig.queue.offer(&buffers);
        rig.driver.notify(0);
        rig.queue.write_descriptor(head, u64::MAX, 16, 0, 0);
        rig.driver.until(|| rig.queue.take_plausible_used());
    }
    assert_eq!(rig.driver.status() & 64, 0);
}
