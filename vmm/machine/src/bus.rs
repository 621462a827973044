//! Who answers a guest's access: ports and registers of devices. What nobody answers reads as ones, as on
//! an empty bus, and is counted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use isopod_hypervisor::{Bus, Flow};
use isopod_virtio::transport::MmioTransport;

use crate::{clock, clock::Clock, layout, serial, serial::Serial};

/// The keyboard controller's command port: of it, only that kernels reset a machine by it
/// (`reboot=k`).
const KEYBOARD: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// A window of registers.
pub trait MmioDevice: Send + Sync {
    /// A vCPU reads `bytes.len()` bytes at `offset` of the window.
    fn read(&self, offset: u64, bytes: &mut [u8]);
    /// A vCPU writes `bytes` at `offset` of the window.
    fn write(&self, offset: u64, bytes: &[u8]);
}

impl MmioDevice for MmioTransport {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        Self::read(self, offset, bytes);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        Self::write(self, offset, bytes);
    }
}

/// All of it.
pub(crate) struct MachineBus {
    /// In the order of their slots.
    pub windows: Vec<Arc<dyn MmioDevice>>,
    pub serial: Serial,
    pub clock: Clock,
    pub unanswered: AtomicU64,
}

impl MachineBus {
    /// The window that all of an access lies in.
    fn window(&self, address: u64, bytes: usize) -> Option<(&dyn MmioDevice, u64)> {
        let from_start = address.checked_sub(layout::DEVICES)?;
        let index = usize::try_from(from_start / layout::WINDOW).ok()?;
        let offset = from_start % layout::WINDOW;
        if offset + bytes as u64 > layout::WINDOW {
            return None;
        }
        Some((self.windows.get(index)?.as_ref(), offset))
    }

    fn count_unanswered(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bus for MachineBus {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        // Ports are bytes wide; a string of reads is one access.
        for byte in data {
            *byte = if (serial::PORT..serial::PORT + serial::PORTS).contains(&port) {
                self.serial.read(port - serial::PORT)
            } else if clock::PORTS.contains(&port) {
                self.clock.read(port)
            } else if port == KEYBOARD {
                // Its buffers are empty: commands may be given.
                0
            } else {
                self.count_unanswered();
                0xff
            };
        }
    }

    fn port_write(&self, port: u16, data: &[u8]) -> Flow {
        for byte in data {
            if (serial::PORT..serial::PORT + serial::PORTS).contains(&port) {
                self.serial.write(port - serial::PORT, *byte);
            } else if clock::PORTS.contains(&port) {
                self.clock.write(port, *byte);
            } else if port == KEYBOARD && *byte == PULSE_RESET {
                return Flow::Reset;
            } else {
                self.count_unanswered();
            }
        }
        Flow::Continue
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.window(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => {
                self.count_unanswered();
                data.fill(0xff);
            }
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.window(address, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => self.count_unanswered(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, usize)>>);

    impl MmioDevice for Recorder {
        fn read(&self, offset: u64, bytes: &mut [u8]) {
            self.0.lock().unwrap().push((offset, bytes.len()));
            bytes.fill(0x11);
        }
        fn write(&self, offset: u64, bytes: &[u8]) {
            self.0.lock().unwrap().push((offset, bytes.len()));
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn bus(devices: &[Arc<Recorder>]) -> (MachineBus, Sink) {
        let sink = Sink::default();
        let bus = MachineBus {
            windows: devices.iter().map(|d| Arc::clone(d) as _).collect(),
            serial: Serial::new(Box::new(sink.clone())),
            clock: Clock::default(),
            unanswered: AtomicU64::new(0),
        };
        (bus, sink)
    }

    #[test]
    fn an_access_reaches_the_device_whose_window_it_is_in() {
        let devices = [Arc::<Recorder>::default(), Arc::<Recorder>::default()];
        let (bus, _) = bus(&devices);
        let mut data = [0; 4];
        bus.mmio_read(layout::DEVICES + layout::WINDOW + 0x70, &mut data);
        assert_eq!(data, [0x11; 4]);
        assert_eq!(*devices[1].0.lock().unwrap(), [(0x70, 4)]);
        // Across the end of a window, behind the last, before the first: nobody's.
        for address in [
            layout::DEVICES + layout::WINDOW - 2,
            layout::DEVICES + 2 * layout::WINDOW,
            layout::DEVICES - 4,
            u64::MAX,
        ] {
            bus.mmio_read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
        }
        assert!(devices[0].0.lock().unwrap().is_empty());
        assert_eq!(bus.unanswered.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn the_serial_port_passes_lines_on() {
        let (bus, sink) = bus(&[]);
        // As early_serial_init() does: divisor, then letters.
        bus.port_write(0x3fb, &[0x80]);
        bus.port_write(0x3f8, &[1]);
        bus.port_write(0x3fb, &[3]);
        bus.port_write(0x3f8, b"hel");
        assert!(sink.0.lock().unwrap().is_empty());
        bus.port_write(0x3f8, b"lo\n");
        assert_eq!(*sink.0.lock().unwrap(), b"hello\n");
        let mut status = [0];
        bus.port_read(0x3fd, &mut status);
        assert_eq!(status, [0x60]);
    }

    #[test]
    fn the_keyboard_controller_resets() {
        let (bus, _) = bus(&[]);
        assert_eq!(bus.port_write(0x64, &[0xd1]), Flow::Continue);
        assert_eq!(bus.port_write(0x60, &[0xfe]), Flow::Continue);
        assert_eq!(bus.port_write(0x64, &[0xfe]), Flow::Reset);
    }

    proptest! {
        #[test]
        fn any_access_is_answered(port: u16, address: u64, mut data: [u8; 8], length in 1usize..=8) {
            let (bus, _) = bus(&[Arc::<Recorder>::default()]);
            bus.port_read(port, &mut data[..length]);
            bus.port_write(port, &data[..length]);
            bus.mmio_read(address, &mut data[..length]);
            bus.mmio_write(address, &data[..length]);
        }
    }
}
