//! The device: queues to packets and back.

use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
};

use isopod_memory::GuestMemory;
use isopod_virtio::{Queue, feature};
use rustix::event::epoll;

/// What distinguishes one vsock device from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id; 3 or more.
    pub guest_cid: u32,
    /// Where the sockets `vsock_P` of host programs are: a guest-initiated connection to port P goes
    /// to `connect_dir/vsock_P`. `.` is the current directory of the thread that calls
    /// [`VsockDevice::handle`].
    pub connect_dir: PathBuf,
}

/// Why [`VsockDevice::handle`] is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The driver notified the device of a queue (any of the three).
    Queue,
    /// The device's own descriptor became readable.
    Host,
}

/// The device's three queues, in the order of their indices. A queue that the driver has not set up,
/// or that the transport has stopped, is simply not `ready`.
pub struct VsockQueues<'a> {
    /// Index 0: packets to the guest.
    pub rx: &'a mut Queue,
    /// Index 1: packets from the guest.
    pub tx: &'a mut Queue,
    /// Index 2: events to the guest.
    pub event: &'a mut Queue,
}

/// Which queues' interrupt to raise.
#[must_use = "the driver waits for its signals"]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// Queue 0.
    pub rx: bool,
    /// Queue 1.
    pub tx: bool,
    /// Queue 2.
    pub event: bool,
}

/// The device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A context id that is reserved (virtio 1.2, 5.10.4).
    #[error("context id {0} cannot be a guest's")]
    ReservedCid(u32),
    /// Making or watching the device's descriptors.
    #[error("{act}: {source}")]
    Host {
        /// What was attempted.
        act: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A virtio-vsock device. See the [module](super) for how a transport uses it.
#[derive(Debug)]
pub struct VsockDevice {
    config: VsockConfig,
    epoll: OwnedFd,
    _listener: UnixListener,
}

impl VsockDevice {
    /// Queues of the device: rx, tx, event.
    pub const QUEUES: usize = 3;
    /// Descriptors per queue that a transport should offer at most.
    pub const MAX_QUEUE_SIZE: u16 = 256;

    /// Makes a device whose host programs connect to `listener` (made non-blocking here). Nothing is
    /// accepted before a driver has set up the queues.
    ///
    /// # Errors
    /// A reserved context id, or no descriptors.
    pub fn new(config: VsockConfig, listener: UnixListener) -> Result<Self, VsockError> {
        if config.guest_cid < 3 || config.guest_cid == u32::MAX {
            return Err(VsockError::ReservedCid(config.guest_cid));
        }
        let host = |act: &'static str| move |source| VsockError::Host { act, source };
        listener
            .set_nonblocking(true)
            .map_err(host("make the listener non-blocking"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| host("create an epoll")(e.into()))?;
        Ok(Self {
            config,
            epoll,
            _listener: listener,
        })
    }

    /// The feature bits that the device offers.
    pub fn features(&self) -> u64 {
        feature::VERSION_1 | feature::EVENT_IDX
    }

    /// The configuration space: the guest's context id, little-endian (virtio 1.2, 5.10.4).
    pub fn config_space(&self) -> [u8; 8] {
        u64::from(self.config.guest_cid).to_le_bytes()
    }

    /// Does all work that can be done now, without blocking: packets from the guest, host events,
    /// packets to the guest.
    ///
    /// Work is bounded per call; if some is left, the device's own descriptor is readable at once.
    pub fn handle(
        &mut self,
        _cause: Cause,
        _memory: &GuestMemory,
        _queues: VsockQueues<'_>,
    ) -> Signals {
        Signals::default()
    }

    /// Forgets everything about the driver: all connections are closed. For a device reset by the
    /// driver or the transport; the next call of [`handle`](Self::handle) with queues that are ready
    /// starts anew.
    pub fn reset(&mut self) {}
}

impl AsFd for VsockDevice {
    /// Readable when [`handle`](Self::handle) is to be called with [`Cause::Host`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
