//! What every device must withstand, whatever it does: the same attacks on each.
//!
//! After each attack the device's thread answers, rests, and serves a driver that starts over.

mod devices;
mod forged;

use std::time::Duration;

use isopod_devices::{balloon::Balloon, blk::Engine, console::Console, pmem::Pmem, rng::Rng};
use isopod_virtio::{
    Control, Device, feature,
    testing::{Buffer, DriverQueue, GuestRam, MmioDriver},
};
use rstest::rstest;

const MEMORY: u64 = 32 << 20;
const SIZE: u16 = 8;
/// `DEVICE_NEEDS_RESET`.
const NEEDS_RESET: u32 = 64;

/// A device under attack.
trait Target {
    fn driver(&mut self) -> &mut MmioDriver;
    /// Nanoseconds of CPU that the device's thread has used.
    fn thread_time(&self) -> i64;
    fn queues(&self) -> usize;
}

struct Under<D: Device> {
    driver: MmioDriver,
    control: Control<D>,
    queues: usize,
}

impl<D: Device> Target for Under<D> {
    fn driver(&mut self) -> &mut MmioDriver {
        &mut self.driver
    }

    fn thread_time(&self) -> i64 {
        let now = |_: &mut D| rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let time = self.control.call(now).unwrap();
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    }

    fn queues(&self) -> usize {
        self.queues
    }
}

fn under<D: Device>(device: D) -> Box<dyn Target> {
    let queues = device.queue_sizes().len();
    let (driver, control) = MmioDriver::attach_to(GuestRam::new(MEMORY), device);
    Box::new(Under {
        driver,
        control,
        queues,
    })
}

/// Features that need nothing of the host.
fn features(driver: &MmioDriver, event_idx: bool) -> u64 {
    let offered = driver.device_features() & (feature::INDIRECT_DESC | feature::EVENT_IDX);
    match event_idx {
        true => offered,
        false => offered & !feature::EVENT_IDX,
    }
}

/// Numbers that look random and are the same every time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

type Attack = fn(&mut MmioDriver, &mut [DriverQueue], &mut Noise);

/// Random descriptors, all of them offered.
fn noise(driver: &mut MmioDriver, queues: &mut [DriverQueue], noise: &mut Noise) {
    for _ in 0..20 {
        for (index, queue) in queues.iter_mut().enumerate() {
            for descriptor in 0..SIZE {
                let wild = noise.next().is_multiple_of(8);
                let address = if wild {
                    noise.next()
                } else {
                    noise.next() % MEMORY
                };
                let bytes = (noise.next() % 5000) as u32;
                let (flags, next) = (noise.next() as u16 & 7, noise.next() as u16 % 10);
                queue.write_descriptor(descriptor, address, bytes, flags, next);
            }
            for _ in 0..SIZE {
                queue.offer_head(noise.next() as u16 % 10);
            }
            driver.notify(index as u32);
        }
    }
}

/// Chains that lead to themselves, to nowhere, and to each other.
fn loops(driver: &mut MmioDriver, queues: &mut [DriverQueue], _noise: &mut Noise) {
    for (index, queue) in queues.iter_mut().enumerate() {
        queue.write_descriptor(0, 0x1000, 16, 1, 0);
        queue.write_descriptor(1, 0x1000, 16, 1, 2);
        queue.write_descriptor(2, 0x1000, 16, 1, 1);
        queue.write_descriptor(3, 0x1000, 16, 1, 999);
        // An indirect table that is its own first entry.
        queue.write_descriptor(4, queue.desc_table + 64, 16, 4, 0);
        for head in 0..5 {
            queue.offer_head(head);
        }
        driver.notify(index as u32);
    }
}

/// Buffers that cover rings and each other.
fn overlaps(driver: &mut MmioDriver, queues: &mut [DriverQueue], _noise: &mut Noise) {
    for (index, queue) in queues.iter_mut().enumerate() {
        for at in [queue.desc_table, queue.avail_ring, queue.used_ring] {
            queue.offer(&[Buffer::Readable(at, 64), Buffer::Writable(at, 64)]);
        }
        driver.notify(index as u32);
    }
}

/// The same chains again and again, and nobody looks at the answers.
fn never_drained(driver: &mut MmioDriver, queues: &mut [DriverQueue], _noise: &mut Noise) {
    let at = driver.ram.allocate(64);
    for round in 0..200 {
        for (index, queue) in queues.iter_mut().enumerate() {
            queue.write_descriptor(0, at, 32, 1, 1);
            queue.write_descriptor(1, at + 32, 32, 2, 0);
            for _ in 0..1 + round % 8 {
                queue.offer_head(0);
            }
            driver.notify(index as u32);
        }
    }
}

/// Available indices that jump.
fn jumps(driver: &mut MmioDriver, queues: &mut [DriverQueue], noise: &mut Noise) {
    for (index, queue) in queues.iter_mut().enumerate() {
        queue.set_available_index(noise.next() as u16);
        driver.notify(index as u32);
    }
}

/// Registers written while the device works, and doorbells that never stop.
fn registers(driver: &mut MmioDriver, queues: &mut [DriverQueue], noise: &mut Noise) {
    for _ in 0..2000 {
        driver.notify(noise.next() as u32 % 8);
        let value = noise.next().to_le_bytes();
        // Not the status: a reset would be the end of it.
        let offset = match noise.next() % 0x180 {
            0x70..0x74 => 0x30,
            offset => offset,
        };
        let width = (noise.next() % 9) as usize;
        driver.transport.write(offset, &value[..width]);
    }
    for queue in queues {
        queue.offer_head(0);
    }
}

fn withstands(mut target: Box<dyn Target>, event_idx: bool, attack: Attack) {
    let count = target.queues();
    let mut random = Noise(0x9e37_79b9_7f4a_7c15);
    for _ in 0..2 {
        let driver = target.driver();
        driver.ram = GuestRam::over(driver.ram.memory.clone(), MEMORY / 2);
        // Nothing of the last driver's rings is left.
        driver.ram.write(0, &vec![0; 1 << 20]);
        let wanted = features(driver, event_idx);
        let mut queues = driver.start(wanted, &vec![SIZE; count]);
        assert_eq!(
            driver.status() & NEEDS_RESET,
            0,
            "a driver that starts over is served"
        );
        attack(driver, &mut queues, &mut random);
        // It answers, and then it rests.
        driver.transport.metrics().unwrap();
    }
    // What the attack left to do may take its moment.
    std::thread::sleep(Duration::from_millis(40));
    let before = target.thread_time();
    std::thread::sleep(Duration::from_millis(40));
    let spent = target.thread_time() - before;
    assert!(spent < 20_000_000, "{spent} ns of 40 ms");
}

/// Everything, on each device.
macro_rules! under_attack {
    ($($device:ident: $make:expr;)*) => {$(
        mod $device {
            use super::*;

            #[rstest]
            fn withstands_attacks(
                #[values(true, false)] event_idx: bool,
                #[values(
                    noise as Attack,
                    loops as Attack,
                    overlaps as Attack,
                    never_drained as Attack,
                    jumps as Attack,
                    registers as Attack
                )]
                attack: Attack,
            ) {
                withstands($make, event_idx, attack);
            }

            #[test]
            fn refuses_a_forged_state_or_lives_with_it() {
                forged::check(|| $make);
            }
        }
    )*};
}

under_attack! {
    rng: under(Rng::default());
    pmem: under(Pmem::new(1 << 32, 2 << 20).unwrap());
    balloon: under(Balloon::default());
    console: under(Console::new().unwrap());
    blk: devices::blk(Engine::OneByOne);
    blk_by_io_uring: devices::blk(Engine::SideBySide);
    mem: devices::mem();
    net: devices::net();
    vsock: devices::vsock();
}
