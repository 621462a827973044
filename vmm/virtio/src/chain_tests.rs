//! What a driver may and may not write into a descriptor table.

use isopod_memory::{GuestAddress, anonymous};
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::cursor::ShortChain;
use crate::testing::write_descriptor_at;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const SIZE: u16 = 8;
const TABLE: u64 = 0x1000;
/// An indirect table.
const ASIDE: u64 = 0x2000;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: 0x4000,
    max_writable: 0x2000,
    indirect: true,
};

/// A descriptor: index (from 100 on: in the indirect table), address, length, flags, next.
type Raw = (u16, u64, u32, u16, u16);

/// Two adjacent regions, so that buffers can span them, and nothing from 0x10000 on.
fn memory() -> GuestMemory {
    anonymous(&[(0, 0x8000), (0x8000, 0x8000)]).unwrap()
}

fn table(memory: &GuestMemory, descriptors: &[Raw]) {
    for &(index, address, bytes, flags, next) in descriptors {
        let at = match index.checked_sub(100) {
            Some(aside) => ASIDE + 16 * u64::from(aside),
            None => TABLE + 16 * u64::from(index),
        };
        write_descriptor_at(memory, at, address, bytes, flags, next);
    }
}

fn parse<'m>(
    memory: &'m GuestMemory,
    head: u16,
    limits: ChainLimits,
) -> Result<Chain<'m>, ChainError> {
    Chain::parse(memory, GuestAddress(TABLE), SIZE, head, limits)
}

#[rstest]
#[case::one_buffer(&[(0, 0x4000, 10, 0, 0)], 10, 0)]
#[case::both_halves(&[(0, 0x4000, 10, NEXT, 5), (5, 0x5000, 20, WRITE, 0)], 10, 20)]
#[case::next_ignored_without_flag(&[(0, 0x4000, 10, 0, 99)], 10, 0)]
#[case::as_long_as_the_queue(&[
    (0, 0x4000, 1, NEXT, 1), (1, 0x4000, 1, NEXT, 2), (2, 0x4000, 1, NEXT, 3), (3, 0x4000, 1, NEXT, 4),
    (4, 0x4000, 1, NEXT, 5), (5, 0x4000, 1, NEXT, 6), (6, 0x4000, 1, NEXT, 7), (7, 0x4000, 1, 0, 0),
], 8, 0)]
#[case::over_the_border_of_regions(&[(0, 0x7ff0, 0x20, WRITE, 0)], 0, 0x20)]
#[case::to_the_end_of_memory(&[(0, 0xfff0, 0x10, 0, 0)], 0x10, 0)]
#[case::at_the_limits(&[(0, 0x4000, 0x4000, NEXT, 1), (1, 0x4000, 0x2000, WRITE, 0)], 0x4000, 0x2000)]
#[case::indirect(&[
    (0, ASIDE, 32, INDIRECT, 0), (100, 0x4000, 10, NEXT, 1), (101, 0x5000, 20, WRITE, 0),
], 10, 20)]
#[case::direct_then_indirect(&[
    (0, 0x4000, 10, NEXT, 1), (1, ASIDE, 16, INDIRECT, 0), (100, 0x5000, 20, WRITE, 0),
], 10, 20)]
fn a_well_formed_chain_is_cut_in_two(
    #[case] descriptors: &[Raw],
    #[case] readable: usize,
    #[case] writable: usize,
) {
    let memory = memory();
    table(&memory, descriptors);
    let chain = parse(&memory, 0, LIMITS).unwrap();
    assert_eq!(chain.head, 0);
    assert_eq!(chain.readable.left(), readable);
    assert_eq!(chain.writable.left(), writable);
}

#[rstest]
#[case::head_outside(9, &[], ChainError::IndexOutsideTable { index: 9, size: SIZE })]
#[case::next_outside(0, &[(0, 0x4000, 10, NEXT, 8)], ChainError::IndexOutsideTable { index: 8, size: SIZE })]
#[case::loop_on_itself(0, &[(0, 0x4000, 1, NEXT, 0)], ChainError::Loop { size: SIZE })]
#[case::loop_of_two(0, &[(0, 0x4000, 1, NEXT, 1), (1, 0x4000, 1, NEXT, 0)], ChainError::Loop { size: SIZE })]
#[case::outside_memory(0, &[(0, 0x10000, 1, 0, 0)], ChainError::BufferOutsideMemory { address: 0x10000, bytes: 1 })]
#[case::half_outside(0, &[(0, 0xfff0, 0x11, 0, 0)], ChainError::BufferOutsideMemory { address: 0xfff0, bytes: 0x11 })]
#[case::address_wraps(0, &[(0, u64::MAX, 2, 0, 0)], ChainError::BufferOutsideMemory { address: u64::MAX, bytes: 2 })]
#[case::empty(0, &[(0, 0x4000, 0, 0, 0)], ChainError::EmptyBuffer { address: 0x4000 })]
#[case::readable_after_writable(
    0, &[(0, 0x4000, 1, NEXT | WRITE, 1), (1, 0x4000, 1, 0, 0)], ChainError::ReadableAfterWritable
)]
#[case::too_much_to_read(0, &[(0, 0x4000, 0x4001, 0, 0)], ChainError::TooManyBytes { limit: 0x4000 })]
#[case::too_much_in_sum(
    0, &[(0, 0x4000, 0x4000, NEXT, 1), (1, 0x4000, 1, 0, 0)], ChainError::TooManyBytes { limit: 0x4000 }
)]
#[case::four_gigabytes(0, &[(0, 0, u32::MAX, WRITE, 0)], ChainError::TooManyBytes { limit: 0x2000 })]
#[case::nested_indirect(
    0, &[(0, ASIDE, 16, INDIRECT, 0), (100, ASIDE, 16, INDIRECT, 0)], ChainError::MisplacedIndirect
)]
#[case::indirect_with_next(0, &[(0, ASIDE, 16, INDIRECT | NEXT, 1)], ChainError::MisplacedIndirect)]
#[case::indirect_writable(0, &[(0, ASIDE, 16, INDIRECT | WRITE, 0)], ChainError::MisplacedIndirect)]
#[case::indirect_empty(0, &[(0, ASIDE, 0, INDIRECT, 0)], ChainError::BadIndirectLength { bytes: 0, size: SIZE })]
#[case::indirect_odd(0, &[(0, ASIDE, 17, INDIRECT, 0)], ChainError::BadIndirectLength { bytes: 17, size: SIZE })]
#[case::indirect_longer_than_the_queue(
    0, &[(0, ASIDE, 16 * 9, INDIRECT, 0)], ChainError::BadIndirectLength { bytes: 144, size: SIZE }
)]
#[case::indirect_longer_than_u16(
    0, &[(0, ASIDE, 16 * 0x10001, INDIRECT, 0)], ChainError::BadIndirectLength { bytes: 16 * 0x10001, size: SIZE }
)]
#[case::indirect_outside(
    0, &[(0, 0x10000, 16, INDIRECT, 0)], ChainError::DescriptorOutsideMemory { address: 0x10000 }
)]
#[case::indirect_address_wraps(
    0, &[(0, u64::MAX - 7, 32, INDIRECT, 0)], ChainError::DescriptorOutsideMemory { address: u64::MAX - 7 }
)]
#[case::indirect_loop(
    0, &[(0, ASIDE, 32, INDIRECT, 0), (100, 0x4000, 1, NEXT, 1), (101, 0x4000, 1, NEXT, 0)], ChainError::Loop { size: SIZE }
)]
fn a_malformed_chain_is_refused(
    #[case] head: u16,
    #[case] descriptors: &[Raw],
    #[case] error: ChainError,
) {
    let memory = memory();
    table(&memory, descriptors);
    assert_eq!(parse(&memory, head, LIMITS).unwrap_err(), error);
}

#[test]
fn an_indirect_table_must_have_been_negotiated() {
    let memory = memory();
    table(
        &memory,
        &[(0, ASIDE, 16, INDIRECT, 0), (100, 0x4000, 1, 0, 0)],
    );
    let limits = ChainLimits {
        indirect: false,
        ..LIMITS
    };
    assert_eq!(
        parse(&memory, 0, limits).unwrap_err(),
        ChainError::MisplacedIndirect
    );
}

#[test]
fn cursors_move_over_pieces_and_refuse_to_leave_them() {
    let memory = memory();
    table(
        &memory,
        &[
            (0, 0x4000, 3, NEXT, 1),
            (1, 0x7ffe, 4, NEXT, 2),
            (2, 0x5000, 4, WRITE | NEXT, 3),
            (3, 0x6000, 4, WRITE, 0),
        ],
    );
    memory.write_slice(b"abc", GuestAddress(0x4000)).unwrap();
    memory.write_slice(b"defg", GuestAddress(0x7ffe)).unwrap();
    let mut chain = parse(&memory, 0, LIMITS).unwrap();

    let mut front = chain.readable.split_front(4).unwrap();
    let mut four = [0; 4];
    front.read(&mut four).unwrap();
    assert_eq!(&four, b"abcd");
    assert_eq!(front.left(), 0);
    assert!(front.slices().is_empty());
    chain.readable.advance(1).unwrap();
    assert_eq!(
        chain.readable.read(&mut four),
        Err(ShortChain { wanted: 4, left: 2 })
    );
    let mut two = [0; 2];
    chain.readable.read(&mut two).unwrap();
    assert_eq!(&two, b"fg", "a refused read consumed nothing");

    let mut header = chain.writable.split_front(2).unwrap();
    chain.writable.write(b"56789").unwrap();
    header.write(b"34").unwrap();
    assert_eq!(
        chain.writable.write(b"xy"),
        Err(ShortChain { wanted: 2, left: 1 })
    );
    let mut written = [0; 4];
    memory
        .read_slice(&mut written, GuestAddress(0x5000))
        .unwrap();
    assert_eq!(&written, b"3456");
    memory
        .read_slice(&mut written, GuestAddress(0x6000))
        .unwrap();
    assert_eq!(&written, b"789\0");
}

prop_compose! {
    /// Descriptors that are often nearly right.
    fn raw(slots: std::ops::Range<u16>)(
        index in slots,
        address in prop_oneof![
            4 => 0u64..0x10100,
            1 => Just(ASIDE),
            1 => any::<u64>(),
        ],
        bytes in prop_oneof![4 => 0u32..0x40, 2 => (0u32..12).prop_map(|n| n * 16), 1 => any::<u32>()],
        flags in 0u16..8,
        next in prop_oneof![9 => 0u16..SIZE, 1 => any::<u16>()],
    ) -> Raw {
        (index, address, bytes, flags, next)
    }
}

proptest! {
    /// Whatever the table holds: no panic, and what is accepted keeps the promises that devices
    /// build on.
    #[test]
    fn what_is_accepted_is_within_the_limits(
        direct in prop::collection::vec(raw(0..SIZE), 1..12),
        aside in prop::collection::vec(raw(100..100 + SIZE), 0..12),
        head in 0..SIZE + 1,
        indirect: bool,
    ) {
        let memory = memory();
        table(&memory, &direct);
        table(&memory, &aside);
        let limits = ChainLimits { max_readable: 0x80, max_writable: 0x60, indirect };
        if let Ok(mut chain) = parse(&memory, head, limits) {
            prop_assert!(chain.readable.left() <= 0x80);
            prop_assert!(chain.writable.left() <= 0x60);
            prop_assert!(chain.readable.left() + chain.writable.left() > 0);
            let sum: usize = chain.readable.slices().iter().map(|piece| piece.len()).sum();
            prop_assert_eq!(sum, chain.readable.left());
            let mut bytes = vec![0; chain.readable.left()];
            prop_assert!(chain.readable.read(&mut bytes).is_ok());
            let room = chain.writable.left();
            prop_assert!(chain.writable.write(&vec![1; room]).is_ok());
            prop_assert!(chain.writable.write(&[1]).is_err());
        }
    }
}
