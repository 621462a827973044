//! The registers, seen by a driver that keeps the rules, and by one that does not.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::mpsc,
    time::Duration,
};

use proptest::prelude::*;
use rstest::rstest;
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};
use virtio_bindings::virtio_mmio::*;

use crate::{
    Activation, ChainLimits, ConfigSpace, Device, DeviceError, DeviceStateError, DeviceType, Event,
    Rings, feature,
    testing::{Buffer, DriverQueue, MmioDriver},
};

const LIMITS: ChainLimits = ChainLimits {
    max_readable: 64,
    max_writable: 64,
    indirect: false,
};
/// A feature bit of the test device's own.
const OWN: u64 = 1 << 5;

/// Answers each chain of its first queue with the bytes that it reads; has 8 bytes of configuration,
/// of which the driver may write the last 4.
struct Echo {
    config: [u8; 8],
    said: mpsc::Sender<&'static str>,
    host: std::os::unix::net::UnixDatagram,
    answered: u64,
}

#[derive(Serialize, Deserialize)]
struct EchoState {
    answered: u64,
}

impl Echo {
    fn new() -> (
        Self,
        mpsc::Receiver<&'static str>,
        std::os::unix::net::UnixDatagram,
    ) {
        let (said, hear) = mpsc::channel();
        let (host, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let echo = Self {
            config: *b"abcdefgh",
            said,
            host,
            answered: 0,
        };
        (echo, hear, other)
    }
}

impl Device for Echo {
    type State = EchoState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        OWN | feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        smallvec![16, 8]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::from_slice(&self.config)
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            if offset + n >= 4 {
                self.config[offset + n] = *byte;
            }
        }
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), DeviceError> {
        let _ = self.said.send("activate");
        match activation.negotiated(OWN) && !virtio_queue::QueueT::ready(&activation.queues[0]) {
            true => Err(DeviceError::MissingQueue(0)),
            false => Ok(()),
        }
    }

    fn handle(&mut self, event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if event == Event::Host {
            let mut word = [0; 8];
            let _ = self.host.recv(&mut word);
            self.config[0] = word[0];
            return Ok(());
        }
        rings.answer_each(0, LIMITS, |mut chain| {
            self.answered += 1;
            let mut bytes = vec![0; chain.readable.left().min(chain.writable.left())];
            chain.readable.read(&mut bytes).unwrap();
            chain.writable.write(&bytes).unwrap();
            bytes.len() as u32
        })
    }

    fn reset(&mut self) {
        let _ = self.said.send("reset");
        self.config = *b"abcdefgh";
    }

    fn host_events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.as_fd())
    }

    fn save(&self) -> EchoState {
        EchoState {
            answered: self.answered,
        }
    }

    fn restore(&mut self, state: EchoState) -> Result<(), DeviceStateError> {
        self.answered = state.answered;
        Ok(())
    }

    fn counters(&self) -> crate::DeviceCounters {
        vec![("answered", self.answered)]
    }
}

fn attach() -> MmioDriver {
    MmioDriver::attach(Echo::new().0).0
}

fn echo(driver: &mut MmioDriver, queue: &mut DriverQueue, word: &[u8]) -> Vec<u8> {
    let at = driver.ram.allocate(128);
    driver.ram.write(at, word);
    let bytes = word.len() as u32;
    queue.offer(&[
        Buffer::Readable(at, bytes),
        Buffer::Writable(at + 64, bytes),
    ]);
    driver.notify(0);
    let used = driver.used(queue);
    driver.ram.read(at + 64, used.written as usize)
}

fn register_errors(driver: &MmioDriver) -> u64 {
    driver.transport.metrics().unwrap().register_errors
}

#[test]
fn a_driver_that_keeps_the_rules_is_served_without_complaint() {
    let mut driver = attach();
    assert_eq!(driver.read(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 3);
    let offered = OWN | feature::EVENT_IDX | feature::INDIRECT_DESC | feature::VERSION_1;
    assert_eq!(driver.device_features(), offered);
    let mut queues = driver.start(OWN | feature::EVENT_IDX, &[16, 8]);
    assert_eq!(driver.status(), 15);
    for word in [&b"first"[..], b"second", b"third"] {
        assert_eq!(echo(&mut driver, &mut queues[0], word), word);
    }
    assert_eq!(register_errors(&driver), 0);
}

#[test]
fn the_interrupt_says_why_until_it_is_acknowledged() {
    let mut driver = attach();
    let mut queues = driver.start(0, &[16, 8]);
    let at = driver.ram.allocate(64);
    queues[0].offer(&[Buffer::Readable(at, 4)]);
    driver.notify(0);
    driver.interrupt(1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn an_indirect_table_is_followed_only_if_negotiated() {
    for (features, written) in [(feature::INDIRECT_DESC, 5), (0, 0)] {
        let mut driver = attach();
        let mut queues = driver.start(features, &[16]);
        let queue = &mut queues[0];
        let (table, data) = (driver.ram.allocate(32), driver.ram.allocate(64));
        let memory = &driver.ram.memory;
        crate::testing::write_descriptor_at(memory, table, data, 5, 1, 1);
        crate::testing::write_descriptor_at(memory, table + 16, data + 32, 5, 2, 0);
        queue.write_descriptor(0, table, 32, 4, 0);
        queue.offer_head(0);
        driver.notify(0);
        assert_eq!(driver.used(queue).written, written);
    }
}

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
fn a_device_that_cannot_work_so_says_it() {
    let driver = attach();
    assert!(driver.negotiate(OWN));
    driver.add_status(4);
    assert_eq!(driver.status() & 64, 64);
}

#[test]
fn a_ring_that_overruns_stops_the_device() {
    let mut driver = attach();
    let queues = driver.start(0, &[16]);
    queues[0].set_available_index(17);
    driver.notify(0);
    driver.until(|| (driver.status() & 64 != 0).then_some(()));
}

#[test]
fn after_a_reset_nothing_is_left_of_the_driver() {
    let (device, said, _host) = Echo::new();
    let (mut driver, _control) = MmioDriver::attach(device);
    let mut queues = driver.start(OWN, &[16, 8]);
    assert_eq!(echo(&mut driver, &mut queues[0], b"once"), b"once");
    driver.reset();
    assert_eq!(
        said.try_iter().collect::<Vec<_>>(),
        ["reset", "activate", "reset"]
    );
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    for index in 0..2 {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    // The old rings are not looked at, whatever is written there.
    let at = driver.ram.allocate(64);
    queues[0].offer(&[Buffer::Readable(at, 4)]);
    driver.notify(0);
    assert_eq!(driver.interrupt_within(Duration::from_millis(50)), None);
    assert_eq!(queues[0].take_used(), None);
    // And a driver that starts over finds a new device.
    let mut queues = driver.start(OWN, &[8]);
    assert_eq!(echo(&mut driver, &mut queues[0], b"twice"), b"twice");
}

#[test]
fn what_was_offered_before_driver_ok_is_served_after_it() {
    let mut driver = attach();
    assert!(driver.negotiate(0));
    let mut queue = driver.add_queue(0, 16, false);
    let at = driver.ram.allocate(64);
    queue.offer(&[Buffer::Readable(at, 4)]);
    driver.notify(0);
    assert_eq!(driver.interrupt_within(Duration::from_millis(50)), None);
    driver.add_status(4);
    driver.used(&mut queue);
}

#[test]
fn configuration_changes_raise_the_generation_and_the_interrupt() {
    let (device, _said, host) = Echo::new();
    let (mut driver, control) = MmioDriver::attach(device);
    driver.start(0, &[16]);
    let generation = driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    host.send(b"z").unwrap();
    driver.interrupt(2);
    assert_eq!(driver.config(8), b"zbcdefgh");
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), generation + 1);

    control.call(|echo| echo.config[1] = b'y').unwrap();
    driver.interrupt(2);
    assert_eq!(driver.config(2), b"zy");

    // What the driver writes itself is no news to it.
    driver.transport.write(0x104, b"WXYZ");
    assert_eq!(driver.config(8), b"zycdWXYZ");
    assert_eq!(driver.interrupt_within(Duration::from_millis(50)), None);
    driver.transport.write(0x100, b"0");
    assert_eq!(driver.config(1), b"z", "not writable");
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
fn a_saved_device_goes_on_in_another() {
    let mut driver = attach();
    let mut queues = driver.start(OWN | feature::EVENT_IDX, &[16, 8]);
    for _ in 0..20 {
        assert_eq!(echo(&mut driver, &mut queues[0], b"before"), b"before");
    }
    let state = driver.save();
    let json = serde_json::to_string(&state).unwrap();
    let state = serde_json::from_str(&json).unwrap();
    let (mut driver, _control) = driver.restore(Echo::new().0, state);
    assert_eq!(driver.status(), 15);
    assert_eq!(echo(&mut driver, &mut queues[0], b"after"), b"after");
    let counters = driver.transport.metrics().unwrap().device;
    assert_eq!(counters, [("answered".to_owned(), 21)]);
}

#[test]
fn a_paused_device_is_quiet_and_loses_nothing() {
    let (device, _said, host) = Echo::new();
    let (mut driver, _control) = MmioDriver::attach(device);
    let mut queues = driver.start(0, &[16]);
    driver.transport.pause().unwrap();
    let at = driver.ram.allocate(64);
    queues[0].offer(&[Buffer::Readable(at, 4)]);
    driver.notify(0);
    host.send(b"!").unwrap();
    assert_eq!(driver.interrupt_within(Duration::from_millis(50)), None);
    driver.transport.resume().unwrap();
    driver.used(&mut queues[0]);
    driver.until(|| (driver.config(1) == b"!").then_some(()));
}

#[test]
fn another_devices_state_is_refused() {
    let mut driver = attach();
    driver.start(0, &[16]);
    let good = driver.save();
    let mut other_type = good.clone();
    other_type.device_type = 4;
    let mut newer = good.clone();
    newer.version = 2;
    let mut queues = good.clone();
    queues.registers.queues.pop();
    let mut features = good.clone();
    features.registers.driver_features |= 1 << 9;
    let mut ring = good.clone();
    ring.registers.queues[0].size = 3;
    let mut form = good.clone();
    form.device = serde_json::Value::Null;
    for bad in [other_type, newer, queues, features, ring, form] {
        let fresh = attach();
        assert!(fresh.transport.restore(bad).is_err());
    }
    assert!(attach().transport.restore(good).is_ok());
}

#[test]
fn doorbells_say_what_kvm_is_to_match() {
    let driver = attach();
    let doorbells: Vec<_> = driver.transport.doorbells().collect();
    assert_eq!(doorbells.len(), 2);
    assert_eq!((doorbells[1].offset, doorbells[1].value), (0x50, 1));
}

#[test]
fn a_device_whose_thread_is_gone_needs_a_reset_that_never_helps() {
    let (device, _said, _host) = Echo::new();
    let (mut driver, control) = MmioDriver::attach(device);
    driver.start(0, &[16]);
    // The fault that no device should have; it ends the device's thread and nothing else.
    let gone = control.call(|_| std::panic::resume_unwind(Box::new("a fault")));
    assert_eq!(gone, Err::<(), _>(crate::WorkerGone));
    assert!(driver.transport.metrics().is_err());
    driver.reset();
    assert_eq!(driver.status(), 64);
    assert!(driver.negotiate(0));
    driver.add_status(4);
    assert_eq!(driver.status(), 15 | 64);
}

#[test]
fn a_devices_thread_ends_with_its_last_user() {
    let (device, said, _host) = Echo::new();
    let (driver, control) = MmioDriver::attach(device);
    drop(driver);
    assert_eq!(said.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(control);
    assert_eq!(said.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[test]
fn a_flood_of_doorbells_leaves_the_device_reachable() {
    let mut driver = attach();
    let mut queues = driver.start(0, &[16]);
    for n in 0..10_000 {
        driver.notify(n % 3);
    }
    assert_eq!(echo(&mut driver, &mut queues[0], b"still"), b"still");
    driver.reset();
    assert_eq!(driver.status(), 0);
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
