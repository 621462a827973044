//! Any access to a device's registers, in any order and width, by two vCPUs at once.

#![no_main]

use isopod_devices::rng::Rng;
use isopod_virtio::testing::{Buffer, GuestRam, MmioDriver};
use libfuzzer_sys::fuzz_target;

#[derive(arbitrary::Arbitrary, Debug)]
enum Access {
    Read {
        offset: u16,
        width: u8,
    },
    Write {
        offset: u16,
        width: u8,
        value: u64,
    },
    /// The registers of virtio-mmio are the multiples of 4 below 0x100.
    Register {
        number: u8,
        value: u32,
    },
    Far {
        offset: u64,
    },
    /// As far as a driver that keeps the rules comes.
    Negotiate {
        features: u64,
    },
    Queue {
        size: u16,
        at: u32,
    },
    Start,
    Save,
}

fn access(driver: &MmioDriver, access: &Access) {
    match *access {
        Access::Read { offset, width } => {
            let mut bytes = vec![0; usize::from(width)];
            driver.transport.read(offset.into(), &mut bytes);
        }
        Access::Write {
            offset,
            width,
            value,
        } => {
            let bytes = value.to_le_bytes();
            let width = usize::from(width) % 9;
            driver.transport.write(offset.into(), &bytes[..width]);
        }
        Access::Register { number, value } => driver.write(u32::from(number % 64) * 4, value),
        Access::Far { offset } => {
            driver.transport.write(offset, &[0; 4]);
            driver.transport.read(offset, &mut [0; 4]);
        }
        Access::Negotiate { features } => {
            driver.negotiate(features);
        }
        Access::Queue { size, at } => {
            driver.write(0x30, 0);
            driver.write(0x38, size.into());
            for (n, register) in [0x80, 0x90, 0xa0].into_iter().enumerate() {
                driver.write(register, at.wrapping_add(n as u32 * 4096));
                driver.write(register + 4, 0);
            }
            driver.write(0x44, 1);
        }
        Access::Start => driver.add_status(4),
        Access::Save => {
            driver.transport.pause().unwrap();
            driver.transport.save().unwrap();
            driver.transport.resume().unwrap();
        }
    }
}

fuzz_target!(|input: (Vec<Access>, Vec<Access>)| {
    let (one, other) = input;
    let (mut driver, _control) = MmioDriver::attach_to(GuestRam::new(1 << 20), Rng::default());
    std::thread::scope(|scope| {
        if !other.is_empty() {
            scope.spawn(|| other.iter().take(32).for_each(|a| access(&driver, a)));
        }
        one.iter().take(64).for_each(|a| access(&driver, a));
    });
    // Whatever was done, a driver that starts over is served.
    let mut queues = driver.start(0, &[8]);
    let at = driver.ram.allocate(64);
    queues[0].offer(&[Buffer::Writable(at, 64)]);
    driver.notify(0);
    assert_eq!(driver.used(&mut queues[0]).written, 64);
});
