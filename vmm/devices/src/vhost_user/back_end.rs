//! The conversation with a back end: each act bounded, each failure named.

use std::os::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    unix::net::UnixStream,
};

use isopod_memory::{AddressSpace, GuestAddressSpace, GuestMemoryHandle, file_of};
use isopod_virtio::{Activation, QueueT, feature};
use rustix::net::RecvFlags;
use smallvec::SmallVec;
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures},
    },
};

use super::{
    VhostUserError,
    watchdog::{Leash, Watchdog},
};

/// Which queues run.
pub(super) type Serving = SmallVec<[usize; 4]>;

/// The process at the other end.
pub(super) struct BackEnd {
    front_end: Frontend,
    /// The same connection, to see it end.
    connection: OwnedFd,
    leash: Leash,
}

impl BackEnd {
    /// Begins the conversation; the feature bits that the back end offers.
    pub(super) fn connect(
        connection: UnixStream,
        queues: u64,
        watchdog: &Watchdog,
    ) -> Result<(Self, u64), VhostUserError> {
        let duplicate = || {
            let fd = connection.as_fd().try_clone_to_owned();
            fd.map_err(|e| VhostUserError::Message {
                act: "watch the connection",
                reason: e.to_string(),
            })
        };
        let mut this = Self {
            leash: watchdog.leash(duplicate()?),
            connection: duplicate()?,
            front_end: Frontend::from_stream(connection, queues),
        };
        let features = this.within("the negotiation", |f| negotiate(f, queues))?;
        Ok((this, features))
    }

    /// Gives it the guest's memory and those queues that the driver set up.
    pub(super) fn start(&mut self, activation: &Activation<'_>) -> Result<Serving, VhostUserError> {
        self.within("starting the queues", |f| start(f, activation))
    }

    /// Stops the queues; each with the next entry of its available ring.
    pub(super) fn stop(
        &mut self,
        queues: &[usize],
    ) -> Result<SmallVec<[(usize, u16); 4]>, VhostUserError> {
        self.within("stopping the queues", |f| {
            let mut positions = SmallVec::new();
            for &index in queues {
                f.set_vring_enable(index, false)
                    .map_err(failed("disable a queue"))?;
                let base = f.get_vring_base(index).map_err(failed("stop a queue"))?;
                // A split ring's index has 16 bits.
                positions.push((index, base as u16));
            }
            Ok(positions)
        })
    }

    /// Has it forget the driver. One that cannot keeps what the driver had open, which is between the
    /// two of them.
    pub(super) fn forget(&mut self) -> Result<(), VhostUserError> {
        use vhost::{Error::VhostUserProtocol, vhost_user::Error::InactiveOperation};
        self.within("the reset", |f| match f.reset_device() {
            Ok(()) | Err(VhostUserProtocol(InactiveOperation(_))) => Ok(()),
            Err(error) => Err(failed("reset")(error)),
        })
    }

    /// Readable when there is something wrong: between messages it has nothing to say.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// What is wrong, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        let mut byte = [0; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.connection, &mut byte, flags) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => None,
            Ok((0, _)) => Some("the process that serves the device is gone".to_owned()),
            Ok(_) => Some("a message that was not asked for".to_owned()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Messages, all of which together may take as long as the watchdog's patience.
    fn within<T>(
        &mut self,
        act: &'static str,
        messages: impl FnOnce(&mut Frontend) -> Result<T, VhostUserError>,
    ) -> Result<T, VhostUserError> {
        let bound = self.leash.bound();
        let outcome = messages(&mut self.front_end);
        drop(bound);
        if self.leash.ended() {
            let patience = self.leash.patience();
            return Err(VhostUserError::Silent { act, patience });
        }
        outcome
    }
}

fn negotiate(front_end: &mut Frontend, queues: u64) -> Result<u64, VhostUserError> {
    front_end.set_owner().map_err(failed("set owner"))?;
    let features = front_end.get_features().map_err(failed("get features"))?;
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    if features & feature::VERSION_1 == 0 {
        return Err(VhostUserError::Lacks("VIRTIO_F_VERSION_1"));
    }
    if features & protocol == 0 {
        return Err(VhostUserError::Lacks("VHOST_USER_F_PROTOCOL_FEATURES"));
    }
    let offered = front_end
        .get_protocol_features()
        .map_err(failed("get protocol features"))?;
    let wanted = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RESET_DEVICE;
    // Without acknowledgements a refusal would go unnoticed.
    if !offered.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        return Err(VhostUserError::Lacks("VHOST_USER_PROTOCOL_F_REPLY_ACK"));
    }
    front_end
        .set_protocol_features(offered & wanted)
        .map_err(failed("set protocol features"))?;
    front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    if offered.contains(VhostUserProtocolFeatures::MQ) {
        let offered = front_end
            .get_queue_num()
            .map_err(failed("get the number of queues"))?;
        if offered < queues {
            return Err(VhostUserError::Queues {
                offered,
                needed: queues,
            });
        }
    }
    Ok(features)
}

fn start(front_end: &mut Frontend, activation: &Activation<'_>) -> Result<Serving, VhostUserError> {
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    front_end
        .set_features(activation.features | protocol)
        .map_err(failed("set features"))?;
    front_end
        .set_mem_table(&memory_table(activation.memory)?)
        .map_err(failed("set the memory table"))?;
    let mut serving = Serving::new();
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
        front_end
            .set_vring_num(index, queue.size())
            .and_then(|()| front_end.set_vring_addr(index, &rings))
            .and_then(|()| front_end.set_vring_base(index, queue.next_avail()))
            .and_then(|()| front_end.set_vring_call(index, activation.interrupt))
            .and_then(|()| front_end.set_vring_kick(index, doorbell))
            .and_then(|()| front_end.set_vring_enable(index, true))
            .map_err(failed("start a queue"))?;
        // What was offered before is not announced again.
        let _ = doorbell.write(1);
        serving.push(index);
    }
    Ok(serving)
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
