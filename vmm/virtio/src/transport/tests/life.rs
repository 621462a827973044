//! The life of a device: served, stopped, reset, paused, saved; and of the thread that owns it.

use std::{sync::mpsc, time::Duration};

use virtio_bindings::virtio_mmio::*;

use super::{Echo, OWN, attach, echo, register_errors};
use crate::{
    feature,
    testing::{Buffer, MmioDriver},
};

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
