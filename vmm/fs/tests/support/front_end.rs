//! A minimal vhost-user front end and guest driver: memory in a memfd that both sides map, rings
//! written with pwrite.

use std::{
    fs::File,
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    time::{Duration, Instant},
};

use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserHeaderFlag, VhostUserProtocolFeatures},
    },
};
use vmm_sys_util::eventfd::EventFd;

use super::Guest;

const MEMORY: u64 = 4 << 20;
/// What the front end says its address of guest memory is. Nothing is mapped there.
const ADDRESS: u64 = 0x7000_0000_0000;
const QUEUE: u64 = 16;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x20_0000;

/// A connected front end with one request queue.
pub struct FrontEnd {
    memory: File,
    kick: EventFd,
    offered: u16,
    features: u64,
    call: EventFd,
    connection: Frontend,
}

impl FrontEnd {
    /// Negotiates and starts queue 1 of a virtio-fs device.
    pub fn start(socket: UnixStream) -> Self {
        let memory =
            File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY).unwrap();
        let mut front = Frontend::from_stream(socket, 2);
        front.set_owner().unwrap();
        let features = front.get_features().unwrap();
        assert_ne!(features & (1 << 32), 0, "VIRTIO_F_VERSION_1");
        let protocol = front.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        front.set_protocol_features(protocol & wanted).unwrap();
        // A reset is not answered otherwise.
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(front.get_queue_num().unwrap(), 2);
        let mut this = Self {
            memory,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            offered: 0,
            features: features & ((1 << 32) | (1 << 30)),
            connection: front,
        };
        this.run();
        this
    }

    /// A driver begins: features, memory, queue 1 with empty rings.
    fn run(&mut self) {
        let Self {
            memory,
            kick,
            call,
            offered,
            features,
            connection: front,
        } = self;
        *offered = 0;
        memory.write_all_at(&[0; 4], AVAILABLE).unwrap();
        memory.write_all_at(&[0; 4], USED).unwrap();
        // Version 1, protocol features; no event index: every answer is signalled.
        front.set_features(*features).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: ADDRESS,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        front.set_mem_table(&[region]).unwrap();
        front.set_vring_num(1, QUEUE as u16).unwrap();
        let rings = VringConfigData {
            queue_max_size: QUEUE as u16,
            queue_size: QUEUE as u16,
            flags: 0,
            desc_table_addr: ADDRESS + DESCRIPTORS,
            used_ring_addr: ADDRESS + USED,
            avail_ring_addr: ADDRESS + AVAILABLE,
            log_addr: None,
        };
        front.set_vring_addr(1, &rings).unwrap();
        front.set_vring_base(1, 0).unwrap();
        front.set_vring_call(1, call).unwrap();
        front.set_vring_kick(1, kick).unwrap();
        front.set_vring_enable(1, true).unwrap();
    }

    /// The driver leaves, and another one comes.
    pub fn reset(&mut self) {
        self.connection.set_vring_enable(1, false).unwrap();
        let taken = self.connection.get_vring_base(1).unwrap();
        assert_eq!(taken, u32::from(self.offered));
        self.connection.reset_device().unwrap();
        self.run();
    }

    fn descriptor(&self, index: u64, address: u64, bytes: u32, flags: u16, next: u16) {
        let descriptor = [
            address.to_le_bytes().as_slice(),
            &bytes.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ]
        .concat();
        self.memory
            .write_all_at(&descriptor, DESCRIPTORS + 16 * index)
            .unwrap();
    }
}

impl Guest for FrontEnd {
    fn send(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        self.memory.write_all_at(request, REQUEST).unwrap();
        self.descriptor(0, REQUEST, request.len() as u32, 1, 1);
        self.descriptor(1, ANSWER, room as u32, 2, 0);
        let slot = AVAILABLE + 4 + 2 * (u64::from(self.offered) % QUEUE);
        self.memory.write_all_at(&0u16.to_le_bytes(), slot).unwrap();
        self.offered = self.offered.wrapping_add(1);
        self.memory
            .write_all_at(&self.offered.to_le_bytes(), AVAILABLE + 2)
            .unwrap();
        self.kick.write(1).unwrap();

        let deadline = Instant::now() + Duration::from_secs(20);
        let mut index = [0; 2];
        loop {
            self.memory.read_exact_at(&mut index, USED + 2).unwrap();
            if u16::from_le_bytes(index) == self.offered {
                break;
            }
            assert!(Instant::now() < deadline, "no answer");
            std::thread::sleep(Duration::from_micros(200));
        }
        let slot = USED + 4 + 8 * (u64::from(self.offered.wrapping_sub(1)) % QUEUE);
        let mut length = [0; 4];
        self.memory.read_exact_at(&mut length, slot + 4).unwrap();
        let mut answer = vec![0; u32::from_le_bytes(length) as usize];
        self.memory.read_exact_at(&mut answer, ANSWER).unwrap();
        answer
    }
}
