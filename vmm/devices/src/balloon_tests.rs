//! The balloon, as a driver sees it.

use isopod_virtio::testing::{Buffer, DriverQueue, GuestRam, MmioDriver};
use rstest::rstest;

use super::*;

const ALL: u64 = STATS | DEFLATE_ON_OOM | REPORTING;

struct Rig {
    driver: MmioDriver,
    control: isopod_virtio::Control<Balloon>,
    queues: Vec<DriverQueue>,
}

fn rig_of(ram: GuestRam, features: u64) -> Rig {
    let (mut driver, control) = MmioDriver::attach_to(ram, Balloon::default());
    let queues = driver.start(features, &[16; 4]);
    Rig {
        driver,
        control,
        queues,
    }
}

fn rig() -> Rig {
    rig_of(GuestRam::new(16 << 20), ALL)
}

impl Rig {
    fn send(&mut self, queue: usize, bytes: &[u8]) {
        let at = self.driver.ram.allocate(bytes.len() as u64);
        self.driver.ram.write(at, bytes);
        self.queues[queue].offer(&[Buffer::Readable(at, bytes.len() as u32)]);
        self.driver.notify(queue as u32);
    }

    fn pages(&mut self, queue: usize, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.send(queue, &bytes);
        self.driver.used(&mut self.queues[queue]);
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.control.call(|balloon| balloon.counters()).unwrap();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }

    /// A region of this many pages, page-aligned and filled.
    fn filled(&mut self, pages: u64) -> u64 {
        let at = self.driver.ram.allocate((pages + 1) * PAGE);
        let at = at.next_multiple_of(PAGE);
        self.driver.ram.write(at, &vec![7; (pages * PAGE) as usize]);
        at
    }
}

fn stat(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn inflated_pages_are_freed_and_only_they() {
    let mut rig = rig();
    let at = rig.filled(8);
    let page = (at / PAGE) as u32;
    // Backwards, with a gap, one twice.
    rig.pages(INFLATE, &[page + 5, page + 2, page + 1, page, page + 5]);
    let first = |rig: &Rig, n: u64| rig.driver.ram.read(at + n * PAGE, 1)[0];
    let bytes: Vec<u8> = (0..8).map(|n| first(&rig, n)).collect();
    assert_eq!(bytes, [0, 0, 0, 7, 7, 0, 7, 7]);
    rig.pages(DEFLATE, &[page, page + 1]);
    assert_eq!(
        (rig.counter("inflated_pages"), rig.counter("deflated_pages")),
        (5, 2)
    );
}

#[rstest]
#[case::anonymous(GuestRam::new(16 << 20))]
#[case::a_files(GuestRam::shared(16 << 20))]
fn reported_pages_are_freed(#[case] ram: GuestRam) {
    let mut rig = rig_of(ram, ALL);
    let at = rig.filled(64);
    rig.queues[3].offer(&[
        Buffer::Writable(at, 16 * PAGE as u32),
        Buffer::Writable(at + 32 * PAGE, 32 * PAGE as u32),
    ]);
    rig.driver.notify(3);
    assert_eq!(rig.driver.used(&mut rig.queues[3]).written, 0);
    for (page, byte) in [(0, 0), (15, 0), (16, 7), (31, 7), (32, 0), (63, 0)] {
        assert_eq!(rig.driver.ram.read(at + page * PAGE, 1), [byte]);
    }
    assert_eq!(rig.counter("reported_bytes"), 48 * PAGE);
    assert_eq!(rig.counter("freed_bytes"), 48 * PAGE);
}

#[test]
fn without_statistics_the_reports_have_the_third_queue() {
    let mut rig = rig_of(GuestRam::new(16 << 20), REPORTING);
    let at = rig.filled(1);
    rig.queues[2].offer(&[Buffer::Writable(at, PAGE as u32)]);
    rig.driver.notify(2);
    rig.driver.used(&mut rig.queues[2]);
    assert_eq!(rig.driver.ram.read(at, 1), [0]);
}

#[test]
fn poisoned_pages_are_not_touched() {
    let mut rig = rig_of(GuestRam::new(16 << 20), ALL | PAGE_POISON);
    rig.driver.transport.write(0x10c, &0xaa_u32.to_le_bytes());
    let at = rig.filled(1);
    rig.queues[3].offer(&[Buffer::Writable(at, PAGE as u32)]);
    rig.driver.notify(3);
    rig.driver.used(&mut rig.queues[3]);
    assert_eq!(rig.driver.ram.read(at, 1), [7]);
}

#[rstest]
#[case::outside_of_memory(&u32::MAX.to_le_bytes())]
#[case::half_a_number(&[0, 0, 0])]
fn nonsense_is_answered_and_counted(#[case] bytes: &[u8]) {
    let mut rig = rig();
    rig.send(INFLATE, bytes);
    rig.driver.used(&mut rig.queues[INFLATE]);
    assert_eq!(rig.counter("guest_errors"), 1);
}

#[test]
fn the_host_sets_a_target_and_hears_what_was_reached() {
    let rig = rig();
    rig.control
        .call(|balloon| balloon.set_target(1000))
        .unwrap();
    rig.driver.interrupt(2);
    assert_eq!(rig.driver.config(4), 1000u32.to_le_bytes());
    rig.driver.transport.write(0x104, &600u32.to_le_bytes());
    assert_eq!(rig.control.call(|balloon| balloon.actual()).unwrap(), 600);
    // The target is the host's.
    rig.driver.transport.write(0x100, &1u32.to_le_bytes());
    assert_eq!(rig.driver.config(4), 1000u32.to_le_bytes());
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut rig = rig();
    let stats = [stat(4, 1 << 20), stat(5, 1 << 30), stat(99, 1)].concat();
    rig.send(2, &stats);
    let seen = |balloon: &mut Balloon| balloon.stats();
    let stats = rig.driver.until(|| rig.control.call(seen).unwrap());
    assert_eq!(
        (stats.free, stats.total, stats.caches),
        (Some(1 << 20), Some(1 << 30), None)
    );
    assert_eq!(
        rig.queues[2].take_used(),
        None,
        "the buffer stays until it is wanted"
    );

    rig.control.call(Balloon::refresh_stats).unwrap();
    rig.driver.used(&mut rig.queues[2]);
    rig.send(2, &stat(4, 5));
    rig.driver.until(|| {
        let stats = rig.control.call(seen).unwrap();
        (stats?.free == Some(5)).then_some(())
    });
}

#[test]
fn a_driver_that_offers_many_statistics_gets_all_but_the_last_back() {
    let mut rig = rig();
    for _ in 0..5 {
        rig.send(2, &stat(4, 1));
    }
    for _ in 0..4 {
        rig.driver.used(&mut rig.queues[2]);
    }
    assert_eq!(rig.queues[2].take_used(), None);
}

#[test]
fn it_goes_on_where_it_was_saved() {
    let mut rig = rig();
    rig.control.call(|balloon| balloon.set_target(9)).unwrap();
    rig.send(2, &stat(4, 1));
    let seen = |balloon: &mut Balloon| balloon.stats();
    rig.driver.until(|| rig.control.call(seen).unwrap());
    let state = rig.driver.save();
    let (driver, control) = rig.driver.restore(Balloon::default(), state);
    assert_eq!(driver.config(4), 9u32.to_le_bytes());
    control.call(Balloon::refresh_stats).unwrap();
    driver.used(&mut rig.queues[2]);

    let mut other = Balloon::default();
    let bad = BalloonState {
        stats_head: Some(QUEUE_SIZE),
        ..BalloonState::default()
    };
    assert!(other.restore(bad).is_err());
}
