//! A device behind registers, seen by a driver that keeps the rules, and by one that does not.

mod life;
mod registers;

use std::{
    os::fd::{AsFd, BorrowedFd},
    os::unix::net::UnixDatagram,
    sync::mpsc,
};

use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

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
    host: UnixDatagram,
    answered: u64,
}

#[derive(Serialize, Deserialize)]
struct EchoState {
    answered: u64,
}

impl Echo {
    fn new() -> (Self, mpsc::Receiver<&'static str>, UnixDatagram) {
        let (said, hear) = mpsc::channel();
        let (host, other) = UnixDatagram::pair().unwrap();
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
