//! A round of work on a ring, against the fake driver.

use rstest::rstest;

use super::*;
use crate::testing::{Buffer, DriverQueue, GuestRam, Used};

const LIMITS: ChainLimits = ChainLimits {
    max_readable: 4096,
    max_writable: 4096,
    indirect: false,
};

struct Rig {
    ram: GuestRam,
    driver: DriverQueue,
    queue: Queue,
    counters: QueueCounters,
    buffer: u64,
}

fn rig(event_idx: bool) -> Rig {
    let mut ram = GuestRam::new(0x10000);
    let driver = DriverQueue::new(&mut ram, 8, event_idx);
    let queue = driver.device_side();
    let buffer = ram.allocate(0x1000);
    Rig {
        ram,
        driver,
        queue,
        counters: QueueCounters::default(),
        buffer,
    }
}

impl Rig {
    fn live(&mut self) -> LiveQueue<'_, '_> {
        LiveQueue::new(
            &mut self.queue,
            &self.ram.memory,
            LIMITS,
            &mut self.counters,
        )
        .unwrap()
    }
}

#[test]
fn chains_are_popped_in_order_answered_and_counted() {
    let mut rig = rig(false);
    rig.ram.write(rig.buffer, b"ping");
    let first = rig.driver.offer(&[
        Buffer::Readable(rig.buffer, 4),
        Buffer::Writable(rig.buffer + 16, 8),
    ]);
    let second = rig.driver.offer(&[Buffer::Readable(rig.buffer, 1)]);

    let mut live = rig.live();
    {
        let mut chain = live.pop().unwrap().unwrap();
        let mut request = [0; 4];
        chain.readable.read(&mut request).unwrap();
        assert_eq!(&request, b"ping");
        chain.writable.write(b"pong").unwrap();
        live.complete(chain.head, 4).unwrap();
        let chain = live.pop().unwrap().unwrap();
        live.complete(chain.head, 0).unwrap();
    }
    assert!(live.pop().unwrap().is_none());
    assert!(live.finish());

    assert_eq!(
        rig.driver.take_used(),
        Some(Used {
            head: first,
            written: 4
        })
    );
    assert_eq!(
        rig.driver.take_used(),
        Some(Used {
            head: second,
            written: 0
        })
    );
    assert_eq!(rig.driver.take_used(), None);
    assert_eq!(rig.ram.read(rig.buffer + 16, 4), b"pong");
    let expected = QueueCounters {
        chains: 2,
        signals: 1,
        ..Default::default()
    };
    assert_eq!(rig.counters, expected);
}

#[test]
fn a_malformed_chain_is_answered_with_nothing_and_passed_over() {
    let mut rig = rig(false);
    let bad = rig.driver.offer(&[Buffer::Readable(0xffff_0000, 16)]);
    rig.driver.offer_head(200);
    let good = rig.driver.offer(&[Buffer::Readable(rig.buffer, 16)]);

    let mut live = rig.live();
    assert_eq!(live.pop().unwrap().unwrap().head, good);
    assert_eq!(
        live.last_refused(),
        Some(ChainError::IndexOutsideTable {
            index: 200,
            size: 8
        })
    );
    assert!(live.finish(), "the refusal itself is signalled");
    assert_eq!(rig.counters.malformed, 2);
    assert_eq!(
        rig.driver.take_used(),
        Some(Used {
            head: bad,
            written: 0
        })
    );
    assert_eq!(rig.driver.take_used(), None);
}

#[test]
fn a_chain_that_is_given_back_is_found_again() {
    let mut rig = rig(false);
    let heads = [
        rig.driver.offer(&[Buffer::Writable(rig.buffer, 16)]),
        rig.driver.offer(&[Buffer::Writable(rig.buffer, 16)]),
    ];
    let mut live = rig.live();
    live.pop().unwrap().unwrap();
    live.pop_another().unwrap().unwrap();
    live.give_back();
    live.give_back();
    assert!(!live.finish(), "nothing was completed");
    let mut live = rig.live();
    for head in heads {
        assert_eq!(live.pop().unwrap().unwrap().head, head);
    }
    assert!(!live.finish());
    assert_eq!(rig.counters.chains, 2);
}

#[test]
fn an_available_index_too_far_ahead_breaks_the_queue() {
    let mut rig = rig(false);
    rig.driver.set_available_index(9);
    assert!(matches!(rig.live().pop(), Err(QueueError::AvailableIndex)));
    assert_eq!(rig.counters.broken, 1);
}

#[rstest]
#[case::table(0x3_0000, 0x1000, 0x2000, "descriptor table")]
#[case::available(0x1000, 0xfffe, 0x2000, "available ring")]
#[case::used(0x1000, 0x2000, 0xffc0, "used ring")]
#[case::used_at_the_top(0x1000, 0x2000, 0xffff_ffff_ffff_fffc, "used ring")]
fn rings_outside_memory_are_refused(
    #[case] table: u64,
    #[case] available: u64,
    #[case] used: u64,
    #[case] name: &str,
) {
    let mut rig = rig(false);
    let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    let (low, high) = halves(table);
    rig.queue.set_desc_table_address(low, high);
    let (low, high) = halves(available);
    rig.queue.set_avail_ring_address(low, high);
    let (low, high) = halves(used);
    rig.queue.set_used_ring_address(low, high);
    match LiveQueue::new(&mut rig.queue, &rig.ram.memory, LIMITS, &mut rig.counters) {
        Err(QueueError::RingOutsideMemory { ring, .. }) => assert_eq!(ring, name),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_queue_that_is_not_set_up_is_not_served() {
    let mut rig = rig(false);
    rig.queue.set_ready(false);
    assert!(matches!(
        LiveQueue::new(&mut rig.queue, &rig.ram.memory, LIMITS, &mut rig.counters),
        Err(QueueError::NotReady)
    ));
}

/// Completes everything offered; whether a signal is due.
fn serve(rig: &mut Rig) -> bool {
    let mut live = rig.live();
    while let Some(chain) = live.pop().unwrap() {
        live.complete(chain.head, 0).unwrap();
    }
    assert!(!live.listen().unwrap());
    live.finish()
}

#[test]
fn signals_are_suppressed_by_the_flag() {
    let mut rig = rig(false);
    rig.driver.set_available_flags(1);
    rig.driver.offer(&[Buffer::Readable(rig.buffer, 1)]);
    assert!(!serve(&mut rig));
    rig.driver.set_available_flags(0);
    rig.driver.offer(&[Buffer::Readable(rig.buffer, 1)]);
    assert!(serve(&mut rig));
    assert!(!serve(&mut rig), "nothing new was completed");
}

#[test]
fn signals_and_notifications_follow_the_event_index() {
    let mut rig = rig(true);
    rig.driver.set_used_event(2);
    for _ in 0..2 {
        rig.driver.offer(&[Buffer::Readable(rig.buffer, 1)]);
    }
    assert!(!serve(&mut rig), "two are done, the third was asked for");
    assert_eq!(rig.driver.available_event(), 2);
    for _ in 0..3 {
        rig.driver.offer(&[Buffer::Readable(rig.buffer, 1)]);
    }
    assert!(serve(&mut rig), "one signal for the batch");
    assert_eq!(rig.driver.available_event(), 5);
    assert_eq!(rig.counters.signals, 1);
}

#[test]
fn a_ring_full_of_malformed_chains_ends_a_pop() {
    let mut rig = rig(false);
    for _ in 0..8 {
        rig.driver.offer(&[Buffer::Readable(0xffff_0000, 16)]);
    }
    let mut live = rig.live();
    assert!(live.pop().unwrap().is_none());
    assert!(live.finish());
    assert_eq!(rig.counters.malformed, 8);
}

#[test]
fn a_malformed_chain_behind_others_is_answered_once() {
    let mut rig = rig(false);
    let first = rig.driver.offer(&[Buffer::Writable(rig.buffer, 16)]);
    let bad = rig.driver.offer(&[Buffer::Readable(0xffff_0000, 16)]);
    let mut live = rig.live();
    live.pop().unwrap().unwrap();
    assert!(live.pop_another().unwrap().is_none());
    live.give_back();
    assert_eq!(live.pop().unwrap().unwrap().head, first);
    live.complete(first, 0).unwrap();
    assert!(live.pop().unwrap().is_none());
    assert!(live.finish());
    let answers: Vec<_> = std::iter::from_fn(|| rig.driver.take_used()).collect();
    assert_eq!(
        answers.iter().map(|used| used.head).collect::<Vec<_>>(),
        [first, bad]
    );
    assert_eq!(rig.counters.malformed, 1);
}
