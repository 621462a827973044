//! What `blk` and `net` do in a second, and how long one request takes, with a guest driver in this
//! process: the device's thread, its rings and the system calls are as in a monitor; a guest's own
//! instructions and its exits are not in the figures. Run by `cargo bench -p isopod-devices`.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    time::{Duration, Instant},
};

use isopod_devices::{
    blk::{Blk, BlkConfig, Disk, Engine},
    net::{Net, NetConfig},
    rate::RateLimit,
};
use isopod_virtio::{
    feature,
    testing::{Buffer, DriverQueue, GuestRam, MmioDriver},
};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

const TIME: Duration = Duration::from_secs(1);
const DISK: u64 = 256 << 20;
const SECTOR: u64 = 512;
const MIB: f64 = (1 << 20) as f64;
/// Of a virtio-net packet, before the frame.
const HEADER: usize = 12;
/// A frame that ends the thread at the other end: shorter than any other here, and no runt.
const END: usize = 20;

fn main() {
    // `cargo test --benches` only wants to know that it is there.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    for (engine, name) in [
        (Engine::OneByOne, "one by one"),
        (Engine::SideBySide, "side by side"),
    ] {
        let mut disk = DiskRig::new(engine);
        let trips = disk.run(VIRTIO_BLK_T_IN, 4096, 1);
        println!("blk {name}: read 4 KiB       {:8.1} us", 1e6 / trips);
        let many = disk.run(VIRTIO_BLK_T_IN, 4096, 32);
        println!("blk {name}: 32 at a time     {many:8.0} reads/s");
        for (kind, what) in [(VIRTIO_BLK_T_IN, "read "), (VIRTIO_BLK_T_OUT, "write")] {
            let rate = disk.run(kind, 128 << 10, 8) * f64::from(128 << 10) / MIB;
            println!("blk {name}: {what} 128 KiB x8 {rate:8.0} MiB/s");
        }
    }
    let mut card = CardRig::new();
    println!(
        "net: there and back        {:8.1} us",
        card.round_trip() * 1e6
    );
    let packets = card.send(1500);
    println!("net: send 1500 bytes       {:8.0} packets/s", packets);
    println!(
        "net: send 60 KiB           {:8.0} MiB/s",
        card.send(60 << 10) * f64::from(60 << 10) / MIB
    );
}

/// A disk whose file is in the page cache.
struct DiskRig {
    driver: MmioDriver,
    queue: DriverQueue,
    /// Header, data and status of each request on its way.
    places: Vec<u64>,
    next: u64,
}

impl DiskRig {
    fn new(engine: Engine) -> Self {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file");
        file.set_len(DISK).expect("a file");
        fill(&file);
        let mut blk = Blk::new(BlkConfig {
            engine,
            ..BlkConfig::default()
        })
        .expect("a slot");
        blk.insert(Disk::new(file).expect("a disk")).expect("empty");
        let (mut driver, _) = MmioDriver::attach_to(GuestRam::new(64 << 20), blk);
        let queue = driver.start(feature::EVENT_IDX, &[256]).remove(0);
        let places = (0..32).map(|_| driver.ram.allocate((128 << 10) + 4096));
        let places = places.collect();
        Self {
            driver,
            queue,
            places,
            next: 0,
        }
    }

    /// Requests per second, so many on their way at once.
    fn run(&mut self, kind: u32, bytes: u32, depth: usize) -> f64 {
        let places: Vec<u64> = self.places.iter().copied().take(depth).collect();
        for place in &places {
            self.offer(kind, *place, bytes);
        }
        self.driver.notify(0);
        let began = Instant::now();
        let mut done = 0u64;
        while began.elapsed() < TIME {
            self.driver.used(&mut self.queue);
            // Those that came with it are answered with it.
            let mut came = 1;
            while self.queue.take_used().is_some() {
                came += 1;
            }
            for _ in 0..came {
                let place = places[done as usize % depth];
                self.offer(kind, place, bytes);
                done += 1;
            }
            self.driver.notify(0);
        }
        let rate = done as f64 / began.elapsed().as_secs_f64();
        for _ in 0..depth {
            self.driver.used(&mut self.queue);
        }
        rate
    }

    fn offer(&mut self, kind: u32, place: u64, bytes: u32) {
        // A step that comes by every sector before it comes back.
        self.next = (self.next + 7919 * 4096) % (DISK - u64::from(bytes));
        let sector = self.next / 4096 * 4096 / SECTOR;
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.driver.ram.write(place, &header);
        let data = match kind {
            VIRTIO_BLK_T_IN => Buffer::Writable(place + 4096, bytes),
            _ => Buffer::Readable(place + 4096, bytes),
        };
        let chain = [
            Buffer::Readable(place, 16),
            data,
            Buffer::Writable(place + 16, 1),
        ];
        self.queue.offer(&chain);
    }
}

fn fill(file: &File) {
    use std::os::unix::fs::FileExt;
    let block = vec![0x5a; 1 << 20];
    for at in (0..DISK).step_by(1 << 20) {
        file.write_all_at(&block, at).expect("room in memory");
    }
}

/// A card whose tap is one end of a pair of datagram sockets.
struct CardRig {
    driver: MmioDriver,
    receive: DriverQueue,
    send: DriverQueue,
    wire: UnixDatagram,
    room: u64,
    packet: u64,
}

impl CardRig {
    fn new() -> Self {
        let (ours, wire) = UnixDatagram::pair().expect("a pair");
        let mut net = Net::new(NetConfig {
            mac: [2, 0, 0, 0, 0, 7],
            mtu: 1500,
            pairs: 1,
            receive: RateLimit::default(),
            send: RateLimit::default(),
        })
        .expect("a slot");
        net.join(vec![OwnedFd::from(ours)]).expect("a link");
        let (mut driver, _) = MmioDriver::attach_to(GuestRam::new(32 << 20), net);
        let mut queues = driver.start(feature::EVENT_IDX, &[256, 256]);
        let (send, receive) = (queues.remove(1), queues.remove(0));
        let (room, packet) = (driver.ram.allocate(4096), driver.ram.allocate(64 << 10));
        Self {
            driver,
            receive,
            send,
            wire,
            room,
            packet,
        }
    }

    /// Seconds from a packet's sending until the answer is in the guest.
    fn round_trip(&mut self) -> f64 {
        let wire = self.wire.try_clone().expect("a descriptor");
        let echo = std::thread::spawn(move || {
            let mut packet = [0; 2048];
            while let Ok(length) = wire.recv(&mut packet) {
                if length < 60 || wire.send(&packet[..length]).is_err() {
                    return;
                }
            }
        });
        let bytes = (HEADER + 60) as u32;
        let (began, mut trips) = (Instant::now(), 0);
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
        // The thread's end.
        self.transmit(END);
        echo.join().expect("no panic");
        took
    }

    fn transmit(&mut self, frame: usize) {
        let bytes = (HEADER + frame) as u32;
        self.send.offer(&[Buffer::Readable(self.packet, bytes)]);
        self.driver.notify(1);
        self.driver.used(&mut self.send);
    }

    /// Frames of this size per second, 64 on their way at once.
    fn send(&mut self, frame: usize) -> f64 {
        let wire = self.wire.try_clone().expect("a descriptor");
        let drain = std::thread::spawn(move || {
            let mut packet = vec![0; 64 << 10];
            while wire.recv(&mut packet).is_ok_and(|length| length >= 60) {}
        });
        let bytes = (HEADER + frame) as u32;
        let (began, mut sent) = (Instant::now(), 0u32);
        while began.elapsed() < TIME {
            while self.send.free_descriptors() > 192 {
                self.send.offer(&[Buffer::Readable(self.packet, bytes)]);
            }
            self.driver.notify(1);
            self.driver.used(&mut self.send);
            sent += 1;
            while self.send.take_used().is_some() {
                sent += 1;
            }
        }
        let rate = f64::from(sent) / began.elapsed().as_secs_f64();
        while self.send.free_descriptors() < 256 {
            self.driver.used(&mut self.send);
        }
        self.transmit(END);
        drain.join().expect("no panic");
        rate
    }
}
