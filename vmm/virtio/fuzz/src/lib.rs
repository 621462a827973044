//! A guest that does to a device what the fuzzer says, in the fuzzer's own thread.

use arbitrary::Arbitrary;
use isopod_virtio::{
    Device, Event,
    testing::{Buffer, Direct, DriverQueue, GuestRam},
};

/// Guest memory; the upper half holds the blocks of a memory device.
pub const MEMORY: u64 = 8 << 20;
const BUFFERS: u64 = 64 << 10;
const QUEUE_SIZE: u16 = 8;

/// A buffer somewhere behind the rings, or at the end of memory and beyond it.
#[derive(Arbitrary, Debug)]
pub struct Piece {
    writable: bool,
    at: u16,
    bytes: u16,
    wild: bool,
}

/// What a driver does next.
#[derive(Arbitrary, Debug)]
pub enum Step {
    /// A chain as it should be, whatever it says.
    Request {
        queue: u8,
        request: Vec<u8>,
        room: u16,
        notify: bool,
    },
    /// A chain of any pieces.
    Offer {
        queue: u8,
        pieces: Vec<Piece>,
        content: Vec<u8>,
    },
    /// Any descriptor.
    Descriptor {
        queue: u8,
        index: u8,
        address: u64,
        bytes: u32,
        flags: u8,
        next: u8,
    },
    /// Any head.
    Head { queue: u8, head: u16 },
    /// Any available index.
    Available { queue: u8, ahead: i8 },
    /// A round of work.
    Notify { queue: u8 },
    /// A round of work for the host's side.
    Host,
    /// A write into the configuration space.
    Config { offset: u8, bytes: Vec<u8> },
    /// What the host does, as the target has it.
    Monitor(u8),
    /// Saved and restored.
    Save,
    /// Reset, and a new driver.
    Reset { features: u64 },
}

/// A device and its driver.
pub struct Drive<D: Device> {
    ram: GuestRam,
    direct: Direct<D>,
    queues: Vec<DriverQueue>,
    count: usize,
    offered: u64,
}

impl<D: Device> Drive<D> {
    /// With a driver that has negotiated `features` of those offered.
    pub fn new(device: D, features: u64) -> Self {
        let ram = GuestRam::new(MEMORY);
        let offered = device.features();
        let count = device.queue_sizes().len();
        let mut drive = Self {
            direct: Direct::new(&ram, device),
            ram,
            queues: Vec::new(),
            count,
            offered,
        };
        drive.start(features);
        drive
    }

    fn start(&mut self, features: u64) {
        let features = features & self.offered;
        let event_idx = features & isopod_virtio::feature::EVENT_IDX != 0;
        // The rings of all drivers are in one place: nothing is left of the last one's.
        let mut below = GuestRam::over(self.ram.memory.clone(), BUFFERS);
        self.ram.write(0, &vec![0; BUFFERS as usize]);
        self.queues = (0..self.count)
            .map(|_| DriverQueue::new(&mut below, QUEUE_SIZE, event_idx))
            .collect();
        let queues = self.queues.iter().map(DriverQueue::device_side).collect();
        self.direct.activate(features, queues);
    }

    /// Does it; `monitor` is called for [`Step::Monitor`].
    pub fn step(&mut self, step: Step, monitor: impl FnOnce(&mut D, u8)) {
        let count = self.count;
        let index = |queue: u8| usize::from(queue) % count;
        match step {
            Step::Request {
                queue,
                request,
                room,
                notify,
            } => {
                let queue = index(queue);
                let request = &request[..request.len().min(4096)];
                let room = u32::from(room) % 8192;
                self.ram.write(BUFFERS, request);
                let mut buffers = Vec::new();
                if !request.is_empty() {
                    buffers.push(Buffer::Readable(BUFFERS, request.len() as u32));
                }
                if room > 0 {
                    buffers.push(Buffer::Writable(BUFFERS + (64 << 10), room));
                }
                self.offer(queue, &buffers);
                if notify {
                    self.direct.handle(Event::Queue(queue));
                    self.collect();
                }
            }
            Step::Offer {
                queue,
                pieces,
                content,
            } => {
                let mut at = BUFFERS;
                for part in content.chunks(64).take(16) {
                    self.ram.write(at, part);
                    at += 4096;
                }
                let buffers: Vec<_> = pieces
                    .iter()
                    .take(QUEUE_SIZE.into())
                    .map(|piece| {
                        let base = if piece.wild { MEMORY - 4096 } else { BUFFERS };
                        let at = base + u64::from(piece.at);
                        match piece.writable {
                            true => Buffer::Writable(at, piece.bytes.into()),
                            false => Buffer::Readable(at, piece.bytes.into()),
                        }
                    })
                    .collect();
                self.offer(index(queue), &buffers);
            }
            Step::Descriptor {
                queue,
                index: at,
                address,
                bytes,
                flags,
                next,
            } => {
                let at = u16::from(at) % QUEUE_SIZE;
                let queue = &self.queues[index(queue)];
                queue.write_descriptor(at, address, bytes, flags.into(), next.into());
            }
            Step::Head { queue, head } => self.queues[index(queue)].offer_head(head),
            Step::Available { queue, ahead } => {
                let queue = &self.queues[index(queue)];
                let at = queue.available_index().wrapping_add_signed(ahead.into());
                queue.set_available_index(at);
            }
            Step::Notify { queue } => {
                self.direct.handle(Event::Queue(index(queue)));
                self.collect();
            }
            Step::Host => {
                self.direct.handle(Event::Host);
                self.collect();
            }
            Step::Config { offset, bytes } => {
                self.direct
                    .write_config(offset.into(), &bytes[..bytes.len().min(8)]);
            }
            Step::Monitor(act) => self.direct.call(|device| monitor(device, act)),
            Step::Save => self.direct.save_and_restore(),
            Step::Reset { features } => {
                self.direct.reset();
                self.start(features);
            }
        }
    }

    fn offer(&mut self, queue: usize, buffers: &[Buffer]) {
        let queue = &mut self.queues[queue];
        if !buffers.is_empty() && buffers.len() <= queue.free_descriptors() {
            queue.offer(buffers);
        }
    }

    /// Descriptors are free again, as far as the used ring makes sense after what was done to it.
    fn collect(&mut self) {
        for queue in &mut self.queues {
            for _ in 0..QUEUE_SIZE {
                if queue.take_plausible_used().is_none() {
                    break;
                }
            }
        }
    }

    /// Nothing that was answered is more than was asked.
    pub fn finish(self) {
        let metrics = self.direct.metrics();
        for queue in metrics.queues {
            assert!(queue.signals <= queue.chains + queue.malformed);
        }
    }
}
