//! A disk whose file is in the page cache, behind the device and without it.

use std::{fs::File, os::unix::fs::FileExt, time::Instant};

use isopod_devices::blk::{Blk, BlkConfig, Disk, Engine};
use isopod_virtio::{
    Device, feature,
    testing::{Buffer, DriverQueue, GuestRam, MmioDriver},
};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use crate::TIME;

const DISK: u64 = 256 << 20;
const SECTOR: u64 = 512;
/// Of the driver.
pub const RAM: u64 = 64 << 20;

fn file() -> File {
    filled(tempfile::tempfile_in("/dev/shm").expect("a file"))
}

/// A disk's content, all of it in memory.
pub fn filled(file: File) -> File {
    let block = vec![0x5a; 1 << 20];
    for at in (0..DISK).step_by(1 << 20) {
        file.write_all_at(&block, at).expect("room in memory");
    }
    file
}

/// Offsets in a step that comes by every page before it comes back.
#[derive(Default)]
struct Steps(u64);

impl Steps {
    fn next(&mut self, bytes: u32) -> u64 {
        self.0 = (self.0 + 7919 * 4096) % (DISK - u64::from(bytes));
        self.0 / 4096 * 4096
    }
}

/// The file by system calls.
pub struct Host {
    file: File,
    steps: Steps,
}

impl Host {
    pub fn new() -> Self {
        Self {
            file: file(),
            steps: Steps::default(),
        }
    }

    /// Calls per second, one after the other.
    pub fn run(&mut self, kind: u32, bytes: u32) -> f64 {
        let mut buffer = vec![0; bytes as usize];
        let (began, mut done) = (Instant::now(), 0u64);
        while began.elapsed() < TIME {
            let at = self.steps.next(bytes);
            let call = match kind {
                VIRTIO_BLK_T_IN => self.file.read_exact_at(&mut buffer, at),
                _ => self.file.write_all_at(&buffer, at),
            };
            call.expect("a file in memory");
            done += 1;
        }
        done as f64 / began.elapsed().as_secs_f64()
    }
}

/// The file behind the device.
pub struct Rig {
    driver: MmioDriver,
    queue: DriverQueue,
    /// Header, data and status of each request on its way.
    places: Vec<u64>,
    steps: Steps,
}

impl Rig {
    pub fn new(engine: Engine) -> Self {
        let mut blk = Blk::new(BlkConfig {
            engine,
            ..BlkConfig::default()
        })
        .expect("a slot");
        let disk = Disk::new(file()).expect("a disk");
        blk.insert(disk).expect("empty");
        Self::of(GuestRam::new(RAM), blk)
    }

    /// Another disk device, for a driver with this memory.
    pub fn of(ram: GuestRam, device: impl Device) -> Self {
        let (mut driver, _) = MmioDriver::attach_to(ram, device);
        let queue = driver.start(feature::EVENT_IDX, &[256]).remove(0);
        let places = (0..32).map(|_| driver.ram.allocate((128 << 10) + 4096));
        let places = places.collect();
        Self {
            driver,
            queue,
            places,
            steps: Steps::default(),
        }
    }

    /// Requests per second, so many on their way at once.
    pub fn run(&mut self, kind: u32, bytes: u32, depth: usize) -> f64 {
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
        let sector = self.steps.next(bytes) / SECTOR;
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
