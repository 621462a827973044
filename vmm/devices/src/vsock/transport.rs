//! The device behind a transport of `isopod-virtio`: the monitor's way to serve vsock without another
//! process.

use std::os::fd::{AsFd, BorrowedFd};

use isopod_virtio::{
    ConfigSpace, Device, DeviceCounters, DeviceError, DeviceStateError, DeviceType, Event, Rings,
};
use smallvec::{SmallVec, smallvec};

use super::{
    device::VsockDevice,
    interface::{Cause, Signals, VsockQueueCounters, VsockQueues, VsockState},
    muxer::VsockCounters,
};

impl Device for VsockDevice {
    type State = VsockState;

    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        VsockDevice::features(self)
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        smallvec![VsockDevice::MAX_QUEUE_SIZE; VsockDevice::QUEUES]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::from_slice(&self.config_space())
    }

    fn handle(&mut self, event: Event, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let cause = match event {
            Event::Queue(_) => Cause::Queue,
            Event::Host => Cause::Host,
        };
        let broken = broken(&self.queue_counters());
        let (memory, queues) = rings.queues();
        let [rx, tx, event] = queues else {
            return Err(DeviceError::MissingQueue(queues.len()));
        };
        let queues = VsockQueues { rx, tx, event };
        let signals = VsockDevice::handle(self, cause, memory, queues);
        if signals != Signals::default() {
            rings.signal();
        }
        let now = self::broken(&self.queue_counters());
        match now
            .iter()
            .zip(broken)
            .position(|(now, before)| *now > before)
        {
            // The device has said why in the log; the driver is told by its status.
            Some(index) => Err(DeviceError::Queue {
                index,
                source: isopod_virtio::QueueError::Access("see the log".into()),
            }),
            None => Ok(()),
        }
    }

    fn reset(&mut self) {
        VsockDevice::reset(self);
    }

    fn host_events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn save(&self) -> VsockState {
        VsockDevice::save(self)
    }

    fn restore(&mut self, state: VsockState) -> Result<(), DeviceStateError> {
        self.take_on(state)
    }

    fn counters(&self) -> DeviceCounters {
        let VsockCounters {
            packets_from_guest,
            packets_to_guest,
            bytes_from_guest,
            bytes_to_guest,
            opened_by_guest,
            opened_by_host,
            refused,
            guest_errors,
        } = VsockDevice::counters(self);
        vec![
            ("packets_from_guest", packets_from_guest),
            ("packets_to_guest", packets_to_guest),
            ("bytes_from_guest", bytes_from_guest),
            ("bytes_to_guest", bytes_to_guest),
            ("opened_by_guest", opened_by_guest),
            ("opened_by_host", opened_by_host),
            ("refused", refused),
            ("guest_errors", guest_errors),
            ("connections", self.connections() as u64),
        ]
    }
}

fn broken(counters: &VsockQueueCounters) -> [u64; VsockDevice::QUEUES] {
    let VsockQueueCounters { rx, tx, event } = counters;
    [rx.broken, tx.broken, event.broken]
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        os::unix::net::{UnixListener, UnixStream},
    };

    use isopod_virtio::{
        feature,
        testing::{Buffer, DriverQueue, MmioDriver},
    };
    use tempfile::TempDir;

    use super::*;
    use crate::vsock::{
        VsockConfig,
        packet::{HEADER_LEN, Header, Op},
    };

    fn device(dir: &TempDir) -> VsockDevice {
        let path = dir.path().join("vsock.sock");
        let _ = std::fs::remove_file(&path);
        let config = VsockConfig {
            guest_cid: 5,
            connect_dir: dir.path().into(),
        };
        VsockDevice::new(config, UnixListener::bind(path).unwrap()).unwrap()
    }

    fn call(dir: &TempDir) -> UnixStream {
        let mut stream = UnixStream::connect(dir.path().join("vsock.sock")).unwrap();
        stream.write_all(b"CONNECT 1024\n").unwrap();
        stream
    }

    struct Guest {
        driver: MmioDriver,
        queues: Vec<DriverQueue>,
        rx: Vec<(u16, u64)>,
    }

    impl Guest {
        fn start(device: VsockDevice) -> Self {
            let (mut driver, _control) = MmioDriver::attach(device);
            let mut queues = driver.start(feature::EVENT_IDX, &[16, 16, 8]);
            let rx = (0..8)
                .map(|_| {
                    let at = driver.ram.allocate(4096);
                    (queues[0].offer(&[Buffer::Writable(at, 4096)]), at)
                })
                .collect();
            driver.notify(0);
            Self { driver, queues, rx }
        }

        fn next(&mut self) -> (Header, Vec<u8>) {
            let used = self.driver.used(&mut self.queues[0]);
            let at = self
                .rx
                .iter()
                .find(|(head, _)| *head == used.head)
                .unwrap()
                .1;
            let bytes = self.driver.ram.read(at, used.written as usize);
            let (header, payload) = bytes.split_at(HEADER_LEN);
            let header = Header::from_wire(header.try_into().unwrap());
            (header, payload.to_vec())
        }

        fn send(&mut self, header: &Header, payload: &[u8]) {
            let at = self
                .driver
                .ram
                .allocate(HEADER_LEN as u64 + payload.len() as u64);
            self.driver.ram.write(at, &header.to_wire());
            self.driver.ram.write(at + HEADER_LEN as u64, payload);
            let bytes = (HEADER_LEN + payload.len()) as u32;
            self.queues[1].offer(&[Buffer::Readable(at, bytes)]);
            self.driver.notify(1);
            self.driver.used(&mut self.queues[1]);
        }
    }

    #[test]
    fn a_host_program_reaches_the_guest_and_back() {
        let dir = TempDir::new().unwrap();
        let mut guest = Guest::start(device(&dir));
        let stream = call(&dir);
        let (request, _) = guest.next();
        assert_eq!((request.op, request.dst_port), (Op::Request as u16, 1024));

        let reply = |op: Op, len| Header {
            src_cid: request.dst_cid,
            dst_cid: request.src_cid,
            src_port: request.dst_port,
            dst_port: request.src_port,
            op: op as u16,
            len,
            buf_alloc: 4096,
            ..request
        };
        guest.send(&reply(Op::Response, 0), b"");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert!(line.starts_with("OK "), "{line}");
        guest.send(&reply(Op::Rw, 5), b"hello");
        let mut word = [0; 5];
        stream.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"hello");

        stream.get_mut().write_all(b"world").unwrap();
        loop {
            let (header, payload) = guest.next();
            if header.op == Op::Rw as u16 {
                assert_eq!(payload, b"world");
                break;
            }
        }
        let metrics = guest.driver.transport.metrics().unwrap();
        assert!(metrics.device.contains(&("opened_by_host".into(), 1)));
    }

    #[test]
    fn rings_that_overrun_fail_the_device() {
        let dir = TempDir::new().unwrap();
        let guest = Guest::start(device(&dir));
        guest.queues[1].set_available_index(999);
        guest.driver.notify(1);
        let driver = &guest.driver;
        driver.until(|| (driver.status() & 64 != 0).then_some(()));
    }

    #[test]
    fn a_restored_guest_is_told_that_its_connections_are_gone() {
        let dir = TempDir::new().unwrap();
        let mut guest = Guest::start(device(&dir));
        let state = guest.driver.save();
        let at = guest.driver.ram.allocate(16);
        guest.queues[2].offer(&[Buffer::Writable(at, 4)]);
        let (driver, _control) = guest.driver.restore(device(&dir), state);
        assert_eq!(driver.used(&mut guest.queues[2]).written, 4);
    }
}
