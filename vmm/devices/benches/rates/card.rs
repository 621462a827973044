//! A card whose tap is one end of a pair of sockets that keep packets apart, and the pair by itself.
//!
//! A busy wire drops what does not fit, as the device must: what is counted has arrived, and no more is
//! sent than can be on its way. The far end's thread ends when the near end is closed; it does not wait
//! for a last packet, which would be dropped like any other.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use isopod_devices::{
    net::{Net, NetConfig},
    rate::RateLimit,
};
use isopod_virtio::{
    Control, feature,
    testing::{Buffer, DriverQueue, GuestRam, MmioDriver},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::TIME;

/// Of a virtio-net packet, before the frame.
const HEADER: usize = 12;
/// The shortest frame of an Ethernet.
const SHORT: usize = 60;
/// What may be on its way: half of what a socket takes by default.
const ON_THE_WAY: usize = 104 << 10;

fn pair() -> (OwnedFd, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a pair")
}

/// How many packets of this length may be on their way.
fn window(bytes: usize) -> u64 {
    (ON_THE_WAY / bytes).clamp(1, 64) as u64
}

/// What the far end does with a packet.
#[derive(Clone, Copy)]
enum Far {
    Echoes,
    Counts,
}

/// The far end's thread, and what has arrived there. It ends with the near end.
struct FarEnd {
    arrived: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl FarEnd {
    fn start(wire: OwnedFd, far: Far) -> Self {
        let arrived = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&arrived);
        let thread = thread::spawn(move || {
            let mut packet = vec![0; 64 << 10];
            while let Ok(bytes @ 1..) = rustix::io::read(&wire, &mut *packet) {
                if matches!(far, Far::Echoes) && rustix::io::write(&wire, &packet[..bytes]).is_err()
                {
                    return;
                }
                count.fetch_add(1, Ordering::Release);
            }
        });
        Self { arrived, thread }
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Acquire)
    }
}

/// The pair by itself: what is written at one end is read at the other.
pub struct Wire {
    near: OwnedFd,
    far: OwnedFd,
}

impl Wire {
    pub fn new() -> Self {
        let (near, far) = pair();
        Self { near, far }
    }

    /// Seconds from a packet's sending until the answer is there.
    pub fn round_trip(self) -> f64 {
        let far = FarEnd::start(self.far, Far::Echoes);
        let mut packet = [0; HEADER + SHORT];
        let (began, mut trips) = (Instant::now(), 0u32);
        while began.elapsed() < TIME {
            rustix::io::write(&self.near, &packet).expect("an open wire");
            rustix::io::read(&self.near, &mut packet).expect("an open wire");
            trips += 1;
        }
        let took = began.elapsed().as_secs_f64() / f64::from(trips);
        drop(self.near);
        far.thread.join().expect("no panic");
        took
    }

    /// Frames of this size that arrive in a second.
    pub fn send(self, frame: usize) -> f64 {
        let far = FarEnd::start(self.far, Far::Counts);
        let packet = vec![0; HEADER + frame];
        let began = Instant::now();
        while began.elapsed() < TIME {
            rustix::io::write(&self.near, &packet).expect("an open wire");
        }
        let rate = far.arrived() as f64 / began.elapsed().as_secs_f64();
        drop(self.near);
        far.thread.join().expect("no panic");
        rate
    }
}

/// The card between a guest's driver and the pair.
pub struct Card {
    driver: MmioDriver,
    control: Control<Net>,
    receive: DriverQueue,
    send: DriverQueue,
    room: u64,
    packet: u64,
}

impl Card {
    pub fn new() -> Self {
        let net = Net::new(NetConfig {
            mac: [2, 0, 0, 0, 0, 7],
            mtu: 1500,
            pairs: 1,
            receive: RateLimit::default(),
            send: RateLimit::default(),
        })
        .expect("a slot");
        let (mut driver, control) = MmioDriver::attach_to(GuestRam::new(32 << 20), net);
        let mut queues = driver.start(feature::EVENT_IDX, &[256, 256]);
        let (send, receive) = (queues.remove(1), queues.remove(0));
        let (room, packet) = (driver.ram.allocate(4096), driver.ram.allocate(64 << 10));
        Self {
            driver,
            control,
            receive,
            send,
            room,
            packet,
        }
    }

    /// Joins the card to a new pair.
    fn connect(&self, far: Far) -> FarEnd {
        let (near, wire) = pair();
        let join = move |net: &mut Net| net.join(vec![near]).expect("a link");
        self.control.call(join).expect("the device's thread");
        FarEnd::start(wire, far)
    }

    fn disconnect(&self, far: FarEnd) {
        self.control
            .call(Net::disconnect)
            .expect("the device's thread");
        far.thread.join().expect("no panic");
    }

    /// Seconds from a packet's sending until the answer is in the guest.
    pub fn round_trip(&mut self) -> f64 {
        let far = self.connect(Far::Echoes);
        let bytes = (HEADER + SHORT) as u32;
        let (began, mut trips) = (Instant::now(), 0u32);
        while began.elapsed() < TIME {
            self.receive.offer(&[Buffer::Writable(self.room, 2048)]);
            self.driver.notify(0);
            self.send.offer(&[Buffer::Readable(self.packet, bytes)]);
            self.driver.notify(1);
            self.driver.used(&mut self.receive);
            self.driver.used(&mut self.send);
            trips += 1;
        }
        let took = began.elapsed().as_secs_f64() / f64::from(trips);
        self.disconnect(far);
        took
    }

    /// Frames of this size that arrive in a second.
    pub fn send(&mut self, frame: usize) -> f64 {
        let far = self.connect(Far::Counts);
        let bytes = HEADER + frame;
        let window = window(bytes);
        let (began, mut sent) = (Instant::now(), 0u64);
        while began.elapsed() < TIME {
            while self.send.take_used().is_some() {}
            let mut offered = false;
            while sent - far.arrived().min(sent) < window && self.send.free_descriptors() > 0 {
                let packet = Buffer::Readable(self.packet, bytes as u32);
                self.send.offer(&[packet]);
                sent += 1;
                offered = true;
            }
            match offered {
                true => self.driver.notify(1),
                false => thread::yield_now(),
            }
        }
        let rate = far.arrived() as f64 / began.elapsed().as_secs_f64();
        while self.send.free_descriptors() < 256 {
            self.driver.used(&mut self.send);
        }
        self.disconnect(far);
        rate
    }
}
