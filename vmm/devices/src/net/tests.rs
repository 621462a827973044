//! The slot and its link, as a driver sees them. Datagram sockets stand in for the tap device's
//! queues: they give and take packets in the same way.

use std::os::unix::net::UnixDatagram;

use isopod_virtio::{
    Device, feature,
    testing::{Buffer, DriverQueue, GuestRam, MmioDriver, PATIENCE},
};
use rstest::rstest;

use super::{
    device::{CTRL_VQ, MQ, MRG_RXBUF, STATUS},
    *,
};

const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 7];

fn config(pairs: u16) -> NetConfig {
    NetConfig {
        mac: ADDRESS,
        mtu: 1450,
        pairs,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    }
}

struct Rig {
    driver: MmioDriver,
    control: isopod_virtio::Control<Net>,
    queues: Vec<DriverQueue>,
    wire: Vec<UnixDatagram>,
}

fn link(pairs: u16) -> (Vec<OwnedFd>, Vec<UnixDatagram>) {
    let ends = (0..pairs).map(|_| UnixDatagram::pair().unwrap());
    let (ours, theirs): (Vec<_>, Vec<_>) = ends.unzip();
    for end in &theirs {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (ours.into_iter().map(OwnedFd::from).collect(), theirs)
}

fn rig_with(config: NetConfig, features: u64) -> Rig {
    let pairs = config.pairs;
    let mut net = Net::new(config).unwrap();
    let (queues, wire) = link(pairs);
    net.join(queues).unwrap();
    let (mut driver, control) = MmioDriver::attach_to(GuestRam::new(32 << 20), net);
    let sizes = vec![16; 2 * usize::from(pairs) + usize::from(pairs > 1)];
    let queues = driver.start(features, &sizes);
    Rig {
        driver,
        control,
        queues,
        wire,
    }
}

fn rig() -> Rig {
    rig_with(config(1), MRG_RXBUF | feature::EVENT_IDX)
}

/// A header of zeroes and a frame.
fn packet(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER], frame].concat()
}

impl Rig {
    fn room(&mut self, queue: usize, bytes: u32) -> u64 {
        let at = self.driver.ram.allocate(bytes.into());
        self.queues[queue].offer(&[Buffer::Writable(at, bytes)]);
        self.driver.notify(queue as u32);
        at
    }

    fn send(&mut self, queue: usize, packet: &[u8]) {
        let at = self.driver.ram.allocate(packet.len() as u64);
        self.driver.ram.write(at, packet);
        self.queues[queue].offer(&[Buffer::Readable(at, packet.len() as u32)]);
        self.driver.notify(queue as u32);
        self.driver.used(&mut self.queues[queue]);
    }

    fn on_wire(&self, wire: usize) -> Vec<u8> {
        let mut bytes = vec![0; MAX_PACKET];
        let length = self.wire[wire].recv(&mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.control.call(|net| net.counters()).unwrap();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }
}

#[test]
fn packets_pass_both_ways() {
    let mut rig = rig();
    let request = packet(&[0xab; 60]);
    rig.send(1, &request);
    assert_eq!(rig.on_wire(0), request);

    let at = rig.room(0, 2048);
    rig.wire[0].send(&packet(&[0xcd; 60])).unwrap();
    let used = rig.driver.used(&mut rig.queues[0]);
    let mut expected = packet(&[0xcd; 60]);
    expected[10] = 1;
    assert_eq!(rig.driver.ram.read(at, used.written as usize), expected);
}

#[test]
fn a_large_packet_is_spread_over_the_buffers_that_it_needs() {
    let mut rig = rig();
    let rooms: Vec<_> = (0..8).map(|_| rig.room(0, 1000)).collect();
    rig.wire[0].send(&packet(&[0xcd; 2500])).unwrap();
    let written: Vec<_> = (0..3)
        .map(|_| rig.driver.used(&mut rig.queues[0]).written)
        .collect();
    assert_eq!(written, [1000, 1000, 512]);
    assert_eq!(rig.driver.ram.read(rooms[0] + 10, 2), [3, 0]);
    assert_eq!(rig.driver.ram.read(rooms[2] + 511, 2), [0xcd, 0]);
    // The others are there for the next.
    rig.wire[0].send(&packet(&[1; 60])).unwrap();
    assert_eq!(rig.driver.used(&mut rig.queues[0]).written, 72);
}

#[test]
fn a_packet_waits_until_there_is_room() {
    let mut rig = rig();
    rig.wire[0].send(&packet(&[1; 1500])).unwrap();
    rig.wire[0].send(&packet(&[2; 60])).unwrap();
    rig.room(0, 1000);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.queues[0].take_used(), None, "half of it is not enough");
    rig.room(0, 1000);
    rig.room(0, 1000);
    let written: Vec<_> = (0..3)
        .map(|_| rig.driver.used(&mut rig.queues[0]).written)
        .collect();
    assert_eq!(written, [1000, 512, 72]);
}

#[test]
fn without_merging_a_packet_that_is_too_long_is_dropped() {
    let mut rig = rig_with(config(1), 0);
    rig.room(0, 1000);
    rig.wire[0].send(&packet(&[1; 1500])).unwrap();
    rig.wire[0].send(&packet(&[2; 60])).unwrap();
    assert_eq!(rig.driver.used(&mut rig.queues[0]).written, 72);
    assert_eq!(rig.counter("rx_dropped"), 1);
}

#[test]
fn a_guest_that_lies_about_its_packet_is_not_believed() {
    let mut rig = rig();
    let mut segmented = packet(&[0; 100]);
    segmented[..2].copy_from_slice(&[1, 1]);
    rig.send(1, &segmented);
    rig.send(1, &[0; 20]);
    rig.send(1, &packet(&[3; 60]));
    assert_eq!(rig.on_wire(0), packet(&[3; 60]), "only the third");
    assert_eq!(rig.counter("guest_errors"), 2);
}

#[test]
fn the_driver_learns_the_address_the_mtu_and_the_link() {
    let mut net = Net::new(config(1)).unwrap();
    assert_eq!(net.config()[6..8], [0, 0]);
    net.join(link(1).0).unwrap();
    let (driver, control) = MmioDriver::attach(net);
    assert_eq!(driver.config(6), ADDRESS);
    assert_eq!(driver.config(12)[6..], [1, 0, 1, 0, 0xaa, 5]);
    drop(control);
}

#[test]
fn a_link_comes_and_goes_while_the_driver_runs() {
    let net = Net::new(config(1)).unwrap();
    let (mut driver, control) = MmioDriver::attach_to(GuestRam::new(32 << 20), net);
    let queues = driver.start(STATUS, &[16, 16]);
    let mut rig = Rig {
        driver,
        control,
        queues,
        wire: Vec::new(),
    };
    rig.send(1, &packet(&[1; 60]));
    assert_eq!(rig.counter("tx_dropped"), 1);
    for _ in 0..2 {
        let (queues, wire) = link(1);
        rig.wire = wire;
        rig.control.call(|net| net.join(queues)).unwrap().unwrap();
        rig.driver.interrupt(2);
        assert_eq!(rig.driver.config(8)[6], 1);
        rig.send(1, &packet(&[2; 60]));
        assert_eq!(rig.on_wire(0), packet(&[2; 60]));
        rig.control.call(Net::disconnect).unwrap();
        rig.driver.interrupt(2);
        assert_eq!(rig.driver.config(8)[6], 0);
    }
}

#[test]
fn pairs_are_used_when_the_driver_says_so() {
    let mut rig = rig_with(config(2), CTRL_VQ | MQ | MRG_RXBUF);
    rig.room(0, 1000);
    rig.room(2, 1000);
    rig.wire[1].send(&packet(&[1; 60])).unwrap();
    assert_eq!(
        rig.driver.used(&mut rig.queues[0]).written,
        72,
        "one pair: its queue"
    );

    let command = |rig: &mut Rig, bytes: &[u8]| {
        let at = rig.driver.ram.allocate(32);
        rig.driver.ram.write(at, bytes);
        rig.queues[4].offer(&[
            Buffer::Readable(at, bytes.len() as u32),
            Buffer::Writable(at + 16, 1),
        ]);
        rig.driver.notify(4);
        assert_eq!(rig.driver.used(&mut rig.queues[4]).written, 1);
        rig.driver.ram.read(at + 16, 1)[0]
    };
    assert_eq!(command(&mut rig, &[4, 0, 2, 0]), 0);
    rig.wire[1].send(&packet(&[1; 60])).unwrap();
    assert_eq!(rig.driver.used(&mut rig.queues[2]).written, 72);
    rig.send(3, &packet(&[9; 60]));
    assert_eq!(rig.on_wire(1), packet(&[9; 60]));
    for nonsense in [
        &[4, 0, 3, 0][..],
        &[4, 0, 0, 0],
        &[0, 0, 1, 0],
        &[4, 0, 1],
        &[4; 9],
    ] {
        assert_eq!(command(&mut rig, nonsense), 1, "{nonsense:?}");
    }
}

#[test]
fn a_limited_slot_sends_no_faster() {
    let limited = NetConfig {
        send: RateLimit {
            operations_per_second: 100,
            ..RateLimit::default()
        },
        ..config(1)
    };
    let mut rig = rig_with(limited, 0);
    let begin = Instant::now();
    for _ in 0..25 {
        rig.send(1, &packet(&[1; 60]));
    }
    assert!(
        begin.elapsed() > Duration::from_millis(100),
        "{:?}",
        begin.elapsed()
    );
    assert!(rig.counter("throttled") > 0);
}

#[test]
fn a_flood_from_the_wire_without_room_keeps_no_thread_busy() {
    let mut rig = rig();
    for _ in 0..5 {
        rig.wire[0].send(&packet(&[1; 60])).unwrap();
    }
    std::thread::sleep(Duration::from_millis(20));
    let thread_time = |rig: &Rig| {
        let now = |_: &mut Net| rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        rig.control.call(now).unwrap()
    };
    let before = thread_time(&rig);
    std::thread::sleep(Duration::from_millis(200));
    let after = thread_time(&rig);
    let spent = (after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec;
    assert!(spent < 50_000_000, "{spent} ns of 200 ms");
    for _ in 0..5 {
        rig.room(0, 1000);
    }
    for _ in 0..5 {
        rig.driver.used(&mut rig.queues[0]);
    }
}

#[test]
fn a_slot_is_saved_and_restored() {
    let mut rig = rig();
    rig.send(1, &packet(&[1; 60]));
    rig.room(0, 1000);
    let state = rig.driver.save();
    let (queues, wire) = link(1);
    let mut net = Net::new(NetConfig {
        mac: [2, 0, 0, 0, 0, 8],
        ..config(1)
    })
    .unwrap();
    net.join(queues).unwrap();
    let (driver, control) = rig.driver.restore(net, state.clone());
    assert_eq!(driver.config(6), ADDRESS);
    let mut rig = Rig {
        driver,
        control,
        wire,
        ..rig
    };
    rig.wire[0].send(&packet(&[5; 60])).unwrap();
    assert_eq!(rig.driver.used(&mut rig.queues[0]).written, 72);

    let (driver, _control) = MmioDriver::attach(Net::new(config(2)).unwrap());
    assert!(driver.transport.restore(state).is_err());
}

#[rstest]
#[case(NetConfig { mac: [1, 0, 0, 0, 0, 7], ..config(1) })]
#[case(NetConfig { mac: [0; 6], ..config(1) })]
#[case(NetConfig { mtu: 67, ..config(1) })]
#[case(config(0))]
#[case(config(MAX_PAIRS + 1))]
fn a_slot_that_cannot_be_is_refused(#[case] config: NetConfig) {
    assert!(Net::new(config).is_err());
}

#[test]
fn a_link_needs_a_tap_queue_for_every_pair() {
    let mut net = Net::new(config(2)).unwrap();
    assert!(matches!(net.join(link(1).0), Err(NetError::Pairs(1))));
    // A socket is no tap device.
    assert!(matches!(
        net.connect(link(2).0),
        Err(NetError::System { .. })
    ));
}

#[test]
fn a_full_wire_drops_and_the_driver_goes_on() {
    let mut rig = rig();
    let frame = packet(&[7; 60]);
    let at = rig.driver.ram.allocate(frame.len() as u64);
    rig.driver.ram.write(at, &frame);
    let mut sent = 0;
    while rig.counter("tx_dropped") == 0 {
        assert!(sent < 100_000, "the wire takes everything");
        rig.queues[1].offer(&[Buffer::Readable(at, frame.len() as u32)]);
        rig.driver.notify(1);
        rig.driver.used(&mut rig.queues[1]);
        sent += 1;
    }
    // What fitted is there, and then there is room again.
    assert_eq!(rig.counter("tx_packets"), sent - 1);
    for _ in 1..sent {
        assert_eq!(rig.on_wire(0), frame);
    }
    let after = packet(&[9; 61]);
    rig.send(1, &after);
    assert_eq!(rig.on_wire(0), after);
}
