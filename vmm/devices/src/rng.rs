//! The entropy device (virtio 1.2, 5.4): the host's random bytes for the guest's pool.

use isopod_virtio::{
    Chain, ChainLimits, Device, DeviceCounters, DeviceError, DeviceStateError, DeviceType, Event,
    Rings, feature,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// Bytes that one request is given at most. A driver may ask for gigabytes with one chain; the
/// specification lets a device give less, and Linux asks for 64 bytes at a time.
const MAX_BYTES: usize = 4096;

const QUEUE_SIZE: u16 = 64;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: 0,
    // Only what is given is bounded: a large buffer is the driver's right.
    max_writable: u32::MAX,
    indirect: false,
};

/// A source of entropy. It has no state and needs no resource: the kernel's generator is a system
/// call that neither blocks nor runs dry.
#[derive(Debug, Default)]
pub struct Rng {
    bytes: u64,
}

/// Nothing: a restored guest is given new bytes as any other is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngState {}

impl Rng {
    fn answer(&mut self, mut chain: Chain<'_>) -> u32 {
        let mut bytes = [0; MAX_BYTES];
        let wanted = chain.writable.left().min(MAX_BYTES);
        let Some(room) = bytes.get_mut(..wanted) else {
            return 0;
        };
        // Up to 256 bytes never fail; of more a signal may leave a part.
        let given = getrandom(&mut *room, GetRandomFlags::NONBLOCK).unwrap_or(0);
        let Some(random) = room.get(..given) else {
            return 0;
        };
        match chain.writable.write(random) {
            Ok(()) => {
                self.bytes += given as u64;
                given as u32
            }
            Err(_) => 0,
        }
    }
}

impl Device for Rng {
    type State = RngState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        smallvec![QUEUE_SIZE]
    }

    fn handle(&mut self, _event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        rings.answer_each(0, LIMITS, |chain| self.answer(chain))
    }

    fn reset(&mut self) {
        // A counter is the monitor's, not the driver's.
        let Self { bytes: _ } = self;
    }

    fn save(&self) -> RngState {
        RngState {}
    }

    fn restore(&mut self, RngState {}: RngState) -> Result<(), DeviceStateError> {
        Ok(())
    }

    fn counters(&self) -> DeviceCounters {
        vec![("bytes", self.bytes)]
    }
}

#[cfg(test)]
mod tests {
    use isopod_virtio::testing::{Buffer, MmioDriver};

    use super::*;

    #[test]
    fn every_buffer_is_filled_with_other_bytes() {
        let (mut driver, _control) = MmioDriver::attach(Rng::default());
        let mut queues = driver.start(feature::EVENT_IDX, &[16]);
        let queue = &mut queues[0];
        let buffers = [driver.ram.allocate(64), driver.ram.allocate(64)];
        for at in buffers {
            queue.offer(&[Buffer::Writable(at, 40), Buffer::Writable(at + 40, 24)]);
        }
        driver.notify(0);
        for _ in buffers {
            assert_eq!(driver.used(queue).written, 64);
        }
        let [first, second] = buffers.map(|at| driver.ram.read(at, 64));
        assert_ne!(first, second);
        assert!(first[40..].iter().any(|byte| *byte != 0));
    }

    #[test]
    fn a_huge_request_is_given_a_part() {
        let (mut driver, _control) = MmioDriver::attach(Rng::default());
        let mut queues = driver.start(0, &[16]);
        let at = driver.ram.allocate(1 << 20);
        queues[0].offer(&[Buffer::Writable(at, 1 << 20)]);
        driver.notify(0);
        let written = driver.used(&mut queues[0]).written as usize;
        assert!((1..=MAX_BYTES).contains(&written));
        assert_eq!(driver.ram.read(at + written as u64, 64), [0; 64]);
    }

    #[test]
    fn a_request_to_read_the_generator_is_refused_and_counted() {
        let (mut driver, _control) = MmioDriver::attach(Rng::default());
        let mut queues = driver.start(0, &[16]);
        let at = driver.ram.allocate(64);
        queues[0].offer(&[Buffer::Readable(at, 64)]);
        driver.notify(0);
        assert_eq!(driver.used(&mut queues[0]).written, 0);
        assert_eq!(driver.transport.metrics().unwrap().queues[0].malformed, 1);
    }

    #[test]
    fn it_goes_on_where_it_was_saved() {
        let (mut driver, _control) = MmioDriver::attach(Rng::default());
        let mut queues = driver.start(feature::EVENT_IDX, &[4]);
        let at = driver.ram.allocate(64);
        for _ in 0..7 {
            queues[0].offer(&[Buffer::Writable(at, 64)]);
            driver.notify(0);
            driver.used(&mut queues[0]);
        }
        let state = driver.save();
        // Offered while nobody listens.
        queues[0].offer(&[Buffer::Writable(at, 64)]);
        let (driver, _control) = driver.restore(Rng::default(), state);
        assert_eq!(driver.used(&mut queues[0]).written, 64);
    }
}
