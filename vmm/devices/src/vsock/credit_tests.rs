//! Flow control, by examples and against a plain model.

use isopod_memory::{AddressSpace, GuestAddress, anonymous};
use proptest::prelude::*;

use super::*;

#[test]
fn credit_counts_over_the_end_of_32_bits() {
    let mut credit = PeerCredit {
        buf_alloc: 100,
        fwd_cnt: u32::MAX - 10,
        sent: u32::MAX - 10,
    };
    credit.consume(60);
    assert_eq!(credit.available(), 40);
    credit.update(100, 49);
    assert_eq!(credit.available(), 100);
}

#[test]
fn a_shrunken_buffer_leaves_no_credit_rather_than_much() {
    let mut credit = PeerCredit::default();
    credit.update(100, 0);
    credit.consume(80);
    credit.update(50, 0);
    assert_eq!(credit.available(), 0);
}

#[test]
fn an_update_is_due_once_the_guest_believes_in_little_room() {
    let mut buffer = Buffer::new(100);
    buffer.receive(50).unwrap();
    buffer.forward(50);
    assert!(!buffer.update_is_due(), "it knows of half of it");
    buffer.receive(1).unwrap();
    assert!(buffer.update_is_due());
    buffer.tell_forwarded();
    assert!(!buffer.update_is_due());
    let mut full = Buffer::new(100);
    full.receive(100).unwrap();
    assert!(!full.update_is_due(), "there is nothing new to tell");
}

#[test]
fn a_buffer_that_was_large_gives_its_memory_back() {
    let memory = anonymous(&[(0, 0x10000)]).unwrap();
    let mut buffer = Buffer::new(0x10000);
    buffer.receive(0x10000).unwrap();
    buffer.keep(&[memory.get_slice(GuestAddress(0), 0x10000).unwrap()]);
    assert!(buffer.bytes.capacity() >= 0x10000);
    buffer.drain(0x10000);
    assert_eq!(buffer.bytes.capacity(), 0);
}

#[test]
fn the_budget_promises_less_and_less_and_then_nothing() {
    let mut budget = Budget::new();
    let mut sizes = Vec::new();
    while let Some(size) = budget.reserve() {
        sizes.push(size);
    }
    assert!(budget.is_spent());
    let count = |size| sizes.iter().filter(|have| **have == size).count();
    assert_eq!(
        (count(256 << 10), count(64 << 10), count(8 << 10)),
        (128, 256, 8192)
    );
    assert_eq!(sizes.len(), 128 + 256 + 8192);
    let total: u64 = sizes.iter().map(|size| u64::from(*size)).sum();
    assert_eq!(total, 112 << 20);
    for size in sizes {
        budget.release(size);
    }
    assert_eq!(budget.reserve(), Some(256 << 10));
}

proptest! {
    /// Whatever a guest says, never more than its buffer is on the way by any honest count.
    #[test]
    fn credit_never_exceeds_what_is_free(
        steps in prop::collection::vec((any::<bool>(), 0u32..1000, any::<u32>()), 1..100),
    ) {
        let alloc = 10_000;
        let mut credit = PeerCredit::default();
        credit.update(alloc, 0);
        let (mut sent, mut read) = (0u64, 0u64);
        for (honest, bytes, lie) in steps {
            let bytes = bytes.min(credit.available());
            credit.consume(bytes);
            sent += u64::from(bytes);
            prop_assert!(sent - read <= u64::from(alloc));
            if honest {
                read = sent;
                credit.update(alloc, read as u32);
                prop_assert_eq!(credit.available(), alloc);
            } else {
                // Ahead of what was sent, or far behind.
                let before = credit.available();
                let outside = (sent as u32).wrapping_add(1).wrapping_add(lie % (u32::MAX / 2));
                credit.update(alloc, outside);
                prop_assert_eq!(credit.available(), before);
            }
        }
    }

    /// The buffer is a queue of bytes that is never longer than promised.
    #[test]
    fn a_buffer_is_a_bounded_queue(
        steps in prop::collection::vec((any::<bool>(), 0u32..300), 1..100),
    ) {
        let memory = anonymous(&[(0, 0x1000)]).unwrap();
        let mut buffer = Buffer::new(500);
        let mut model: VecDeque<u8> = VecDeque::new();
        let mut next = 0u8;
        for (receive, bytes) in steps {
            if receive {
                let fits = model.len() + bytes as usize <= 500;
                prop_assert_eq!(buffer.receive(bytes).is_ok(), fits);
                if fits {
                    let new: Vec<u8> = (0..bytes).map(|n| next.wrapping_add(n as u8)).collect();
                    next = next.wrapping_add(bytes as u8);
                    isopod_memory::Bytes::write_slice(&memory, &new, GuestAddress(0)).unwrap();
                    buffer.keep(&[memory.get_slice(GuestAddress(0), bytes as usize).unwrap()]);
                    model.extend(new);
                }
            } else {
                let bytes = (bytes as usize).min(model.len());
                buffer.drain(bytes);
                model.drain(..bytes);
            }
            let kept: Vec<u8> = buffer.slices().iter().flat_map(|slice| slice.to_vec()).collect();
            prop_assert_eq!(kept, model.iter().copied().collect::<Vec<_>>());
        }
    }
}
