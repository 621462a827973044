//! Rings and descriptors of any content: nothing panics, what devices get is within the limits, and a
//! round of work ends.
#![no_main]

use arbitrary::Arbitrary;
use isopod_memory::{Bytes, GuestAddress, anonymous};
use isopod_virtio::{ChainLimits, LiveQueue, Queue, QueueCounters, QueueT};
use libfuzzer_sys::fuzz_target;

const SIZE: u16 = 16;
const MEMORY: usize = 0x4000;

#[derive(Arbitrary, Debug)]
struct Input {
    desc_table: u16,
    avail_ring: u16,
    used_ring: u16,
    event_idx: bool,
    indirect: bool,
    next_avail: u16,
    max_readable: u16,
    max_writable: u16,
    /// Written at these addresses, in order: the rings, and whatever else.
    writes: Vec<(u16, Vec<u8>)>,
}

fuzz_target!(|input: Input| {
    // Two regions, so that buffers and tables can span their border.
    let memory = anonymous(&[(0, MEMORY / 2), (MEMORY as u64 / 2, MEMORY / 2)]).expect("memory");
    for (address, bytes) in input.writes {
        let _ = memory.write(&bytes, GuestAddress(u64::from(address) % MEMORY as u64));
    }
    let mut queue = Queue::new(SIZE).expect("a queue");
    queue.set_desc_table_address(Some(u32::from(input.desc_table & !15)), None);
    queue.set_avail_ring_address(Some(u32::from(input.avail_ring & !1)), None);
    queue.set_used_ring_address(Some(u32::from(input.used_ring & !3)), None);
    queue.set_event_idx(input.event_idx);
    queue.set_next_avail(input.next_avail);
    queue.set_ready(true);
    let limits = ChainLimits {
        max_readable: input.max_readable.into(),
        max_writable: input.max_writable.into(),
        indirect: input.indirect,
    };
    let mut counters = QueueCounters::default();
    let Ok(mut live) = LiveQueue::new(&mut queue, &memory, limits, &mut counters) else {
        return;
    };
    // More chains than the ring holds mean that answers overwrite it; any number is fine, no end is
    // not.
    for round in 0..64 {
        let chain = match round % 3 {
            2 => live.pop_another(),
            _ => live.pop(),
        };
        let Ok(Some(mut chain)) = chain else {
            break;
        };
        assert!(chain.head < SIZE);
        assert!(chain.readable.left() <= usize::from(input.max_readable));
        assert!(chain.writable.left() <= usize::from(input.max_writable));
        let mut bytes = vec![0; chain.readable.left()];
        chain.readable.read(&mut bytes).expect("as much as is left");
        let room = chain.writable.left();
        let mut front = chain.writable.split_front(room / 2).expect("half of it");
        chain
            .writable
            .write(&vec![1; room - room / 2])
            .expect("the rest");
        front.write(&vec![2; room / 2]).expect("the first half");
        if live.complete(chain.head, room as u32).is_err() {
            break;
        }
    }
    let _ = live.listen();
    let _ = live.finish();
});
