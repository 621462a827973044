//! What a driver may write where, and when: any other access does nothing.

use proptest::prelude::*;
use rstest::rstest;
use virtio_bindings::virtio_mmio::*;

use super::{OWN, attach, echo, register_errors};
use crate::{feature, testing::DriverQueue};

#[rstest]
#[case::a_bit_that_was_not_offered(1 << 9, false)]
#[case::what_was_offered(OWN | feature::EVENT_IDX, true)]
#[case::nothing_of_its_own(0, true)]
fn features_are_refused_or_taken(#[case] features: u64, #[case] taken: bool) {
    assert_eq!(attach().negotiate(features), taken);
}

#[test]
fn a_driver_without_version_1_is_refused() {
    let driver = attach();
    driver.add_status(1);
    driver.add_status(2);
    driver.add_status(8);
    assert_eq!(driver.status(), 3);
}

/// Values written to the status register, and what it reads afterwards.
#[rstest]
#[case::in_order(&[1, 3, 11], 11)]
#[case::at_once(&[11], 11)]
#[case::driver_before_acknowledge(&[2], 0)]
#[case::driver_ok_before_features(&[1, 3, 7], 3)]
#[case::a_bit_taken_back(&[1, 3, 1], 3)]
#[case::an_unknown_bit(&[1, 3, 16 | 3], 3)]
#[case::beyond_eight_bits(&[1, 3, 0x100], 3)]
#[case::needs_reset_is_the_devices(&[1, 64 | 1], 1)]
#[case::given_up(&[1, 3, 128 | 3], 131)]
#[case::given_up_for_good(&[1, 128 | 1, 131, 139], 129)]
#[case::reset(&[1, 3, 0], 0)]
#[case::reset_after_giving_up(&[129, 0, 1], 1)]
fn status_goes_only_its_way(#[case] writes: &[u32], #[case] end: u32) {
    let driver = attach();
    for write in writes {
        // FEATURES_OK needs accepted features.
        driver.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        driver.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        if *write == 11 && driver.status() == 0 {
            // All at once leaves no time for features.
            driver.write(VIRTIO_MMIO_STATUS, 3);
            driver.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        }
        driver.write(VIRTIO_MMIO_STATUS, *write);
    }
    assert_eq!(driver.status(), end);
}

#[test]
fn queues_can_be_set_up_only_between_features_and_driver_ok() {
    let mut driver = attach();
    let queue = DriverQueue::new(&mut driver.ram, 16, false);
    driver.set_up_queue(0, 16, &queue);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "before features");

    assert!(driver.negotiate(0));
    driver.set_up_queue(0, 16, &queue);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    driver.add_status(4);
    let before = register_errors(&driver);
    driver.set_up_queue(0, 8, &queue);
    driver.set_up_queue(1, 8, &queue);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "queue 1, too late");
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1, "frozen");
    assert_eq!(register_errors(&driver), before + 17);
}

#[rstest]
#[case::not_a_power_of_two(15, 0)]
#[case::zero(0, 0)]
#[case::more_than_offered(32, 0)]
#[case::beyond_sixteen_bits(0x1_0010, 0)]
#[case::descriptors_unaligned(16, 8)]
fn a_queue_that_cannot_be_is_never_ready(#[case] size: u32, #[case] skew: u64) {
    let mut driver = attach();
    assert!(driver.negotiate(0));
    let mut queue = DriverQueue::new(&mut driver.ram, 16, false);
    queue.desc_table += skew;
    driver.set_up_queue(0, size, &queue);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn a_queue_that_does_not_exist_has_no_size() {
    let driver = attach();
    for (index, size) in [(0, 16), (1, 8), (2, 0), (u32::MAX, 0)] {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), size);
    }
}

#[test]
fn rings_outside_of_memory_stop_the_device_until_a_reset() {
    let mut driver = attach();
    assert!(driver.negotiate(0));
    let mut queue = DriverQueue::new(&mut driver.ram, 16, false);
    queue.used_ring = 0xffff_ffff_ffff_fff0;
    driver.set_up_queue(0, 16, &queue);
    driver.add_status(4);
    assert_eq!(driver.status(), 15 | 64);
    driver.interrupt(2);
    assert_eq!(driver.failures.lock().unwrap().len(), 1);
    assert!(driver.transport.metrics().unwrap().failure.is_some());

    let mut queues = driver.start(0, &[16]);
    assert_eq!(driver.status(), 15);
    assert_eq!(echo(&mut driver, &mut queues[0], b"again"), b"again");
}

#[test]
fn configuration_reads_of_any_width_are_answered() {
    let driver = attach();
    for (offset, expected) in [
        (0x100, &b"ab"[..]),
        (0x103, b"defgh\0\0\0"),
        (0x107, b"h\0"),
        (0x108, b"\0\0\0\0"),
        (u64::MAX, b"\0"),
    ] {
        let mut bytes = vec![0xff; expected.len()];
        driver.transport.read(offset, &mut bytes);
        assert_eq!(bytes, expected);
    }
}

#[rstest]
#[case(VIRTIO_MMIO_STATUS, 1)]
#[case(VIRTIO_MMIO_STATUS, 2)]
#[case(VIRTIO_MMIO_STATUS, 8)]
#[case(VIRTIO_MMIO_STATUS + 1, 4)]
#[case(0x200 - 0x101, 4)]
fn other_widths_of_registers_do_nothing(#[case] offset: u32, #[case] width: usize) {
    let driver = attach();
    let mut bytes = vec![1; width];
    driver.transport.write(offset.into(), &bytes);
    driver.transport.read(offset.into(), &mut bytes);
    assert_eq!(bytes, vec![0; width]);
    assert_eq!(driver.status(), 0);
    assert_eq!(register_errors(&driver), 2);
}

#[test]
fn doorbells_say_what_kvm_is_to_match() {
    let driver = attach();
    let doorbells: Vec<_> = driver.transport.doorbells().collect();
    assert_eq!(doorbells.len(), 2);
    assert_eq!((doorbells[1].offset, doorbells[1].value), (0x50, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any access in any order and width is answered, and the device can be started afterwards.
    #[test]
    fn any_accesses_leave_a_device_that_works(
        accesses in proptest::collection::vec(
            (any::<bool>(), prop_oneof![0u64..0x120, any::<u64>()], 0usize..9,
             prop_oneof![0u64..20, any::<u64>()]),
            0..60,
        )
    ) {
        let mut driver = attach();
        for (write, offset, width, value) in accesses {
            let mut bytes = value.to_le_bytes();
            match write {
                true => driver.transport.write(offset, &bytes[..width]),
                false => driver.transport.read(offset, &mut bytes[..width]),
            }
        }
        let mut queues = driver.start(0, &[16, 8]);
        prop_assert_eq!(echo(&mut driver, &mut queues[0], b"works"), b"works");
    }
}
