//! A guest without a VM: a driver's three queues, and sockets as Linux's driver keeps them.

use std::{
    collections::VecDeque,
    io::Write,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use isopod_devices::vsock::{
    Cause, Signals, VsockConfig, VsockDevice, VsockQueues,
    packet::{HEADER_LEN, HOST_CID, Header, Op, ShutdownFlags, TYPE_STREAM},
};
use isopod_virtio::{
    Queue,
    testing::{Buffer, DriverQueue, GuestRam, Used},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use crate::socket::{GuestSocket, read_line};

pub const GUEST_CID: u64 = 42;

/// What waiting may take at most; far more than it should.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Linux's: one page for header and payload.
pub const RX_BUFFER: u32 = 4096;

/// The largest packet that the rig sends.
const TX_BUFFER: u32 = 64 * 1024 + HEADER_LEN as u32;

pub struct Ring {
    pub driver: DriverQueue,
    pub device: Queue,
    /// Guest memory per descriptor.
    memory: Vec<u64>,
}

impl Ring {
    fn new(ram: &mut GuestRam, size: u16, event_idx: bool, buffer: u32) -> Self {
        let driver = DriverQueue::new(ram, size, event_idx);
        Self {
            device: driver.device_side(),
            driver,
            memory: (0..size).map(|_| ram.allocate(buffer.into())).collect(),
        }
    }

    /// Memory for a chain that will use the next free descriptors.
    fn next_memory(&mut self) -> u64 {
        self.memory.pop().expect("as many buffers as descriptors")
    }
}

pub struct Rig {
    pub ram: GuestRam,
    pub device: VsockDevice,
    pub rx: Ring,
    pub tx: Ring,
    pub event: Ring,
    pub dir: TempDir,
    /// Packets from the device that no test has looked at yet.
    pub inbox: VecDeque<(Header, Vec<u8>)>,
    /// Which buffer an rx or tx head uses.
    rx_buffers: Vec<u64>,
    tx_buffers: Vec<u64>,
    /// Whether the driver gives rx buffers back.
    pub refills: bool,
    pub signals: u64,
    next_port: u32,
    /// Of the host programs that [`guest_connection`](Self::guest_connection) reaches.
    listeners: Vec<UnixListener>,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(128, true)
    }

    pub fn with(queue_size: u16, event_idx: bool) -> Self {
        let mut rig = Self::without_buffers(queue_size, event_idx);
        rig.refill();
        rig.kick();
        rig
    }

    /// A driver that has set up its queues and offered no room.
    pub fn without_buffers(queue_size: u16, event_idx: bool) -> Self {
        let bytes = u64::from(queue_size) * u64::from(TX_BUFFER + 2 * RX_BUFFER) + (1 << 20);
        let mut ram = GuestRam::new(bytes.next_multiple_of(4096));
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("vsock.sock")).unwrap();
        let config = VsockConfig {
            guest_cid: GUEST_CID as u32,
            connect_dir: dir.path().into(),
        };
        let device = VsockDevice::new(config, listener).unwrap();
        Self {
            rx: Ring::new(&mut ram, queue_size, event_idx, RX_BUFFER),
            tx: Ring::new(&mut ram, queue_size, event_idx, TX_BUFFER),
            event: Ring::new(&mut ram, 8, event_idx, 16),
            rx_buffers: vec![0; queue_size.into()],
            tx_buffers: vec![0; queue_size.into()],
            ram,
            device,
            dir,
            inbox: VecDeque::new(),
            refills: true,
            signals: 0,
            next_port: 1000,
            listeners: Vec::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives the device as much room for packets as there are descriptors.
    pub fn refill(&mut self) {
        while self.rx.driver.free_descriptors() > 0 {
            self.offer_rx(RX_BUFFER);
        }
    }

    pub fn offer_rx(&mut self, bytes: u32) {
        let address = self.rx.next_memory();
        let head = self.rx.driver.offer(&[Buffer::Writable(address, bytes)]);
        self.rx_buffers[usize::from(head)] = address;
    }

    /// The driver notifies; the device does its work.
    pub fn kick(&mut self) {
        let _ = self.handle(Cause::Queue);
    }

    /// Serves the device's own descriptor if it is ready within `wait`; whether it was.
    pub fn serve_host(&mut self, wait: Duration) -> bool {
        let wait = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        };
        let ready = {
            let fd = self.device.as_fd();
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            poll(&mut fds, Some(&wait)).unwrap() > 0
        };
        if ready {
            let _ = self.handle(Cause::Host);
        }
        ready
    }

    pub fn handle(&mut self, cause: Cause) -> Signals {
        let signals = self.device.handle(
            cause,
            &self.ram.memory,
            VsockQueues {
                rx: &mut self.rx.device,
                tx: &mut self.tx.device,
                event: &mut self.event.device,
            },
        );
        self.signals += u64::from(signals.rx) + u64::from(signals.tx);
        self.collect();
        signals
    }

    /// The driver's interrupt handler.
    fn collect(&mut self) {
        let mut took = false;
        while let Some(Used { head, written }) = self.rx.driver.take_used() {
            let address = self.rx_buffers[usize::from(head)];
            self.rx.memory.push(address);
            took = true;
            if written == 0 {
                continue;
            }
            let bytes = self.ram.read(address, written as usize);
            let header = Header::from_wire(bytes[..HEADER_LEN].try_into().unwrap());
            assert_eq!(header.len as usize, bytes.len() - HEADER_LEN);
            assert_eq!(header.dst_cid, GUEST_CID);
            self.inbox.push_back((header, bytes[HEADER_LEN..].to_vec()));
        }
        while let Some(Used { head, written }) = self.tx.driver.take_used() {
            assert_eq!(written, 0);
            self.tx.memory.push(self.tx_buffers[usize::from(head)]);
        }
        if took && self.refills {
            self.refill();
            self.kick();
        }
    }

    /// Puts a packet of any bytes into the tx queue, without a notification.
    pub fn queue_bytes(&mut self, packet: &[u8]) {
        let address = self.tx.next_memory();
        self.ram.write(address, packet);
        let head = self
            .tx
            .driver
            .offer(&[Buffer::Readable(address, packet.len() as u32)]);
        self.tx_buffers[usize::from(head)] = address;
    }

    /// Sends a packet of any bytes.
    pub fn send_bytes(&mut self, packet: &[u8]) {
        self.queue_bytes(packet);
        self.kick();
    }

    pub fn send(&mut self, header: Header, payload: &[u8]) {
        self.send_bytes(&[header.to_wire().as_slice(), payload].concat());
    }

    /// The next packet from the device, for which the device may have to wait for the host.
    pub fn next_packet(&mut self) -> (Header, Vec<u8>) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(packet) = self.inbox.pop_front() {
                return packet;
            }
            assert!(Instant::now() < until, "the device sends nothing");
            self.serve_host(Duration::from_millis(100));
        }
    }

    /// The next packet, which must be this.
    pub fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        let (header, payload) = self.expect_any_source(op);
        assert_eq!(header.src_cid, HOST_CID);
        assert_eq!(header.kind, TYPE_STREAM);
        (header, payload)
    }

    /// The next packet, which must be this, but may be in answer to a packet to another host or of
    /// another type.
    pub fn expect_any_source(&mut self, op: Op) -> (Header, Vec<u8>) {
        let (header, payload) = self.next_packet();
        assert_eq!(Op::from_wire(header.op), Some(op), "{header:?}");
        (header, payload)
    }

    /// The driver notifies and leaves the answered chains for the test to look at.
    pub fn device_only_kick(&mut self) {
        let _ = self.device.handle(
            Cause::Queue,
            &self.ram.memory,
            VsockQueues {
                rx: &mut self.rx.device,
                tx: &mut self.tx.device,
                event: &mut self.event.device,
            },
        );
    }

    /// Lets the device do what it can; there must be no packet.
    pub fn expect_silence(&mut self) {
        while self.serve_host(Duration::from_millis(20)) {}
        assert_eq!(self.inbox.front(), None);
    }

    /// Works until `done`.
    pub fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < until, "this takes too long");
            self.serve_host(Duration::from_millis(10));
        }
    }

    /// Connects as a host program does and says where it wants to.
    pub fn call(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("vsock.sock")).unwrap();
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        stream
    }

    /// A connection that a host program made and the guest accepted.
    pub fn host_connection(&mut self, buf_alloc: u32) -> (UnixStream, GuestSocket) {
        let stream = self.call(1024);
        let (request, _) = self.expect(Op::Request);
        assert_eq!(request.dst_port, 1024);
        let mut socket = GuestSocket::new(request.src_port, 1024, buf_alloc);
        socket.note(&request);
        self.send(socket.header(Op::Response), &[]);
        let mut stream = stream;
        assert_eq!(read_line(&mut stream), format!("OK {}\n", request.src_port));
        (stream, socket)
    }

    /// A connection that the guest made.
    pub fn guest_connection(&mut self, buf_alloc: u32) -> (UnixStream, GuestSocket) {
        let port = self.next_port;
        self.next_port += 1;
        let listener = UnixListener::bind(self.path(&format!("vsock_{port}"))).unwrap();
        let mut socket = GuestSocket::new(port, 5000, buf_alloc);
        self.send(socket.header(Op::Request), &[]);
        let (response, _) = self.expect(Op::Response);
        socket.note(&response);
        let (stream, _) = listener.accept().unwrap();
        self.listeners.push(listener);
        (stream, socket)
    }

    /// Sends from a socket of the guest, within its credit.
    pub fn send_data(&mut self, socket: &mut GuestSocket, bytes: &[u8]) {
        socket.sent = socket.sent.wrapping_add(bytes.len() as u32);
        self.send(
            Header {
                len: bytes.len() as u32,
                ..socket.header(Op::Rw)
            },
            bytes,
        );
    }

    pub fn send_shutdown(&mut self, socket: &mut GuestSocket, flags: ShutdownFlags) {
        self.send(
            Header {
                flags: flags.bits(),
                ..socket.header(Op::Shutdown)
            },
            &[],
        );
    }
}
