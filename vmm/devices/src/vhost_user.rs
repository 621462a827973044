//! A device whose queues another process serves (the vhost-user protocol, front end): `isopod-fs`
//! for files.
//!
//! ```text
//!                 negotiate, memory, rings (at DRIVER_OK)
//!   VhostUser  ------------------------------------------>  back end process
//!                                                             |  maps guest memory itself
//!   guest  --doorbell (ioeventfd)---------------------------->|
//!   guest  <--interrupt (irqfd)------------------------------ |
//! ```
//!
//! After the set-up no request passes through this process: KVM signals the back end's eventfd, and
//! the back end KVM's. The back end is trusted no more than the guest: it gets the guest's memory and
//! two eventfds per queue, and what it says is checked. It is not told where that memory is mapped
//! here; rings are named by guest-physical addresses.
//!
//! ```text
//!         activate / resume                reset / pause
//!   Idle ------------------> Serving ----------------------> Idle
//!     \                         \
//!      +-------------------------+---> Lost: the process is gone or broke the protocol; for good
//! ```
//!
//! A back end that dies makes its device fail (`DEVICE_NEEDS_RESET`) with a reason, and every later
//! activation too: its state (open files, connections) has died with it, so that a new process could
//! only pretend to go on.

use std::{
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::atomic::Ordering,
};

use isopod_memory::{
    AddressSpace, Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryHandle, file_of,
};
use isopod_virtio::{
    Activation, ConfigSpace, Device, DeviceError, DeviceStateError, DeviceType, Event, Queue,
    QueueT, Rings, feature,
};
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures},
    },
};

/// What the front end says itself, because the back end does not know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserConfig {
    /// Which device it is.
    pub device_type: DeviceType,
    /// Feature bits of its kind that the driver may have if the back end has them too. The rings' own
    /// need not be named.
    pub features: u64,
    /// Its configuration space.
    pub config: ConfigSpace,
    /// Descriptors of each queue at most.
    pub queue_sizes: SmallVec<[u16; 4]>,
}

impl VhostUserConfig {
    /// The file system device (virtio 1.2, 5.11): a high-priority queue and `request_queues` more,
    /// mounted by `tag`. `None` if the tag is empty or longer than 36 bytes.
    pub fn file_system(tag: &str, request_queues: u16, queue_size: u16) -> Option<Self> {
        if tag.is_empty() || tag.len() > 36 {
            return None;
        }
        let mut config = ConfigSpace::from_slice(tag.as_bytes());
        config.resize(36, 0);
        config.extend_from_slice(&u32::from(request_queues).to_le_bytes());
        Some(Self {
            device_type: DeviceType::FileSystem,
            features: 0,
            config,
            queue_sizes: SmallVec::from_elem(queue_size, usize::from(request_queues) + 1),
        })
    }

    /// The socket device (5.10) of the guest with this context id.
    pub fn vsock(guest_cid: u32, queue_size: u16) -> Self {
        Self {
            device_type: DeviceType::Vsock,
            features: 0,
            config: ConfigSpace::from_slice(&u64::from(guest_cid).to_le_bytes()),
            queue_sizes: SmallVec::from_elem(queue_size, 3),
        }
    }
}

/// A back end that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// A message failed.
    #[error("{act}: {reason}")]
    Message {
        /// What was asked of the back end.
        act: &'static str,
        /// The protocol library's words.
        reason: String,
    },
    /// It lacks something that is needed.
    #[error("the back end does not offer {0}")]
    Lacks(&'static str),
    /// It serves fewer queues than the device has.
    #[error("the back end serves {offered} queues of {needed}")]
    Queues {
        /// By the back end.
        offered: u64,
        /// By the configuration.
        needed: u64,
    },
    /// The guest's memory cannot be given to another process.
    #[error("guest memory at {0:#x} is not a file's")]
    PrivateMemory(u64),
}

enum Phase {
    Idle,
    /// These queues run.
    Serving(SmallVec<[usize; 4]>),
    Lost(String),
}

/// A device that is served by another process.
pub struct VhostUser {
    config: VhostUserConfig,
    back_end: Frontend,
    /// The same connection, to see it end.
    connection: OwnedFd,
    features: u64,
    phase: Phase,
    activations: u64,
}

/// Nothing of its own: the state is in the other process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUserState {}

impl VhostUser {
    /// Begins the conversation with the back end at the other end of `connection`.
    ///
    /// # Errors
    /// When the back end does not answer as it should.
    pub fn new(config: VhostUserConfig, connection: UnixStream) -> Result<Self, VhostUserError> {
        let needed = config.queue_sizes.len() as u64;
        let watched = connection.as_fd().try_clone_to_owned();
        let watched = watched.map_err(|e| VhostUserError::Message {
            act: "watch the connection",
            reason: e.to_string(),
        })?;
        let mut back_end = Frontend::from_stream(connection, needed);
        back_end.set_owner().map_err(failed("set owner"))?;
        let features = back_end.get_features().map_err(failed("get features"))?;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if features & feature::VERSION_1 == 0 {
            return Err(VhostUserError::Lacks("VIRTIO_F_VERSION_1"));
        }
        if features & protocol == 0 {
            return Err(VhostUserError::Lacks("VHOST_USER_F_PROTOCOL_FEATURES"));
        }
        let offered = back_end
            .get_protocol_features()
            .map_err(failed("get protocol features"))?;
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE;
        // Without acknowledgements a refusal would go unnoticed.
        if !offered.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            return Err(VhostUserError::Lacks("VHOST_USER_PROTOCOL_F_REPLY_ACK"));
        }
        back_end
            .set_protocol_features(offered & wanted)
            .map_err(failed("set protocol features"))?;
        back_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        if offered.contains(VhostUserProtocolFeatures::MQ) {
            let offered = back_end
                .get_queue_num()
                .map_err(failed("get the number of queues"))?;
            if offered < needed {
                return Err(VhostUserError::Queues { offered, needed });
            }
        }
        Ok(Self {
            config,
            back_end,
            connection: watched,
            features,
            phase: Phase::Idle,
            activations: 0,
        })
    }

    fn start(&mut self, activation: &Activation<'_>) -> Result<(), VhostUserError> {
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = activation.features | protocol;
        let back_end = &mut self.back_end;
        back_end
            .set_features(features)
            .map_err(failed("set features"))?;
        back_end
            .set_mem_table(&memory_table(activation.memory)?)
            .map_err(failed("set the memory table"))?;
        let mut serving = SmallVec::new();
        let doorbells = activation.doorbells.iter();
        for (index, (queue, doorbell)) in activation.queues.iter().zip(doorbells).enumerate() {
            if !queue.ready() {
                continue;
            }
            let rings = VringConfigData {
                queue_max_size: queue.max_size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: queue.desc_table(),
                used_ring_addr: queue.used_ring(),
                avail_ring_addr: queue.avail_ring(),
                log_addr: None,
            };
            back_end
                .set_vring_num(index, queue.size())
                .and_then(|()| back_end.set_vring_addr(index, &rings))
                .and_then(|()| back_end.set_vring_base(index, queue.next_avail()))
                .and_then(|()| back_end.set_vring_call(index, activation.interrupt))
                .and_then(|()| back_end.set_vring_kick(index, doorbell))
                .and_then(|()| back_end.set_vring_enable(index, true))
                .map_err(failed("start a queue"))?;
            // What was offered before is not announced again.
            let _ = doorbell.write(1);
            serving.push(index);
        }
        self.phase = Phase::Serving(serving);
        self.activations += 1;
        Ok(())
    }

    /// Stops the queues; each with the next entry of its available ring.
    fn stop(&mut self) -> Result<SmallVec<[(usize, u16); 4]>, VhostUserError> {
        let Phase::Serving(queues) = &self.phase else {
            return Ok(SmallVec::new());
        };
        let queues = queues.clone();
        self.phase = Phase::Idle;
        let mut positions = SmallVec::new();
        for index in queues {
            self.back_end
                .set_vring_enable(index, false)
                .map_err(failed("disable a queue"))?;
            let base = self
                .back_end
                .get_vring_base(index)
                .map_err(failed("stop a queue"))?;
            // A split ring's index has 16 bits.
            positions.push((index, base as u16));
        }
        Ok(positions)
    }

    /// Has the back end forget the driver. One that cannot keeps what the driver had open, which is
    /// between the two of them.
    fn forget(&mut self) -> Result<(), VhostUserError> {
        use vhost::{Error::VhostUserProtocol, vhost_user::Error::InactiveOperation};
        match self.back_end.reset_device() {
            Ok(()) | Err(VhostUserProtocol(InactiveOperation(_))) => Ok(()),
            Err(error) => Err(failed("reset")(error)),
        }
    }

    fn lose(&mut self, reason: String) -> DeviceError {
        self.phase = Phase::Lost(reason.clone());
        DeviceError::BackEnd(reason)
    }

    fn try_start(&mut self, activation: &Activation<'_>) -> Result<(), DeviceError> {
        match &self.phase {
            Phase::Serving(_) => Ok(()),
            Phase::Lost(reason) => Err(DeviceError::BackEnd(reason.clone())),
            Phase::Idle => self
                .start(activation)
                .map_err(|error| self.lose(error.to_string())),
        }
    }
}

impl Device for VhostUser {
    type State = VhostUserState;

    fn device_type(&self) -> DeviceType {
        self.config.device_type
    }

    fn features(&self) -> u64 {
        let passed = self.config.features | feature::EVENT_IDX | feature::INDIRECT_DESC;
        self.features & passed
    }

    fn queue_sizes(&self) -> SmallVec<[u16; 4]> {
        self.config.queue_sizes.clone()
    }

    fn config(&self) -> ConfigSpace {
        self.config.config.clone()
    }

    fn served_elsewhere(&self) -> bool {
        true
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), DeviceError> {
        self.try_start(activation)
    }

    /// Only the connection has events, and between messages it has none but its end.
    fn handle(&mut self, _event: Event, _rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let mut byte = [0; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let reason = match rustix::net::recv(&self.connection, &mut byte, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            Ok((0, _)) => "the process that serves the device is gone".to_owned(),
            Ok(_) => "a message that was not asked for".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(self.lose(reason))
    }

    fn reset(&mut self) {
        let Self {
            config: _,
            back_end: _,
            connection: _,
            features: _,
            phase: _,
            activations: _,
        } = self;
        if !matches!(self.phase, Phase::Serving(_)) {
            return;
        }
        if let Err(error) = self.stop().and_then(|_| self.forget()) {
            self.phase = Phase::Lost(error.to_string());
        }
    }

    fn host_events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.connection.as_fd())
    }

    fn pause(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let positions = match self.stop() {
            Ok(positions) => positions,
            Err(error) => return Err(self.lose(error.to_string())),
        };
        let (memory, queues) = rings.queues();
        for (index, next_avail) in positions {
            if let Some(queue) = queues.get_mut(index) {
                let next_used = used_index(memory, queue);
                queue.set_next_avail(next_avail);
                queue.set_next_used(next_used);
            }
        }
        Ok(())
    }

    fn resume(&mut self, activation: &Activation<'_>) -> Result<(), DeviceError> {
        self.try_start(activation)
    }

    fn save(&self) -> VhostUserState {
        VhostUserState {}
    }

    fn restore(&mut self, VhostUserState {}: VhostUserState) -> Result<(), DeviceStateError> {
        Ok(())
    }

    fn counters(&self) -> isopod_virtio::DeviceCounters {
        vec![("activations", self.activations)]
    }
}

/// How far the back end got, which only the ring says.
fn used_index(memory: &GuestMemory, queue: &Queue) -> u16 {
    let at = GuestAddress(queue.used_ring().wrapping_add(2));
    let index: u16 = memory.load(at, Ordering::Acquire).unwrap_or(0);
    u16::from_le(index)
}

/// Every region, named by its guest-physical address on both sides.
fn memory_table(
    memory: &GuestMemoryHandle,
) -> Result<Vec<VhostUserMemoryRegionInfo>, VhostUserError> {
    let memory = memory.memory();
    let regions = memory.iter().map(|region| {
        let start = isopod_memory::GuestMemoryRegion::start_addr(region).0;
        let (file, part) = file_of(region).ok_or(VhostUserError::PrivateMemory(start))?;
        Ok(VhostUserMemoryRegionInfo {
            guest_phys_addr: part.start,
            memory_size: part.bytes as u64,
            userspace_addr: part.start,
            mmap_offset: part.offset,
            mmap_handle: file.as_raw_fd(),
        })
    });
    regions.collect()
}

fn failed(act: &'static str) -> impl FnOnce(vhost::Error) -> VhostUserError {
    move |error| VhostUserError::Message {
        act,
        reason: error.to_string(),
    }
}

#[cfg(test)]
#[path = "vhost_user_tests.rs"]
mod tests;
