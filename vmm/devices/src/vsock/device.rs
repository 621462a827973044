//! The device: its life, and when it does what.

mod exchange;

use std::{
    collections::BTreeMap,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    time::{Duration, Instant},
};

use isopod_memory::GuestMemory;
use isopod_virtio::{DeviceStateError, LiveQueue, QueueError, feature};

use self::exchange::{RX_LIMITS, TX_LIMITS, tell_reset};
use super::{
    callers::Callers,
    host::{EVENTS, Source, UnixHost, Way},
    interface::{
        Cause, Signals, VsockConfig, VsockError, VsockQueueCounters, VsockQueues, VsockState,
    },
    muxer::{Muxer, VsockCounters},
};

/// Host events per call, in batches of epoll's.
const POLLS: usize = 4;

/// When to look again at queues that were not ready when the host had something for the guest. Only
/// a transport that stops a running device's queues brings that about.
const NOT_READY_RETRY: Duration = Duration::from_millis(100);

/// A virtio-vsock device. See the [module](super) for how a transport uses it.
#[derive(Debug)]
pub struct VsockDevice {
    guest_cid: u32,
    muxer: Muxer<UnixHost>,
    callers: Callers,
    /// The guest is to be told that all connections are gone.
    reset_event_due: bool,
    /// The transport stopped the queues under us.
    stalled: bool,
    /// One warning per activation is enough.
    warned: bool,
    queue_counters: VsockQueueCounters,
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
        Self::meeting(
            config.guest_cid,
            listener,
            Way::Directory(config.connect_dir),
        )
    }

    /// As [`new`](Self::new), for a process that can reach no socket by a path: a guest can connect to the
    /// ports that have a channel here, one end of a `SOCK_SEQPACKET` pair. One end of each connection is
    /// sent over it as `SCM_RIGHTS` with one byte; while the channel is full, the guest waits.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_channels(
        guest_cid: u32,
        listener: UnixListener,
        channels: BTreeMap<u32, OwnedFd>,
    ) -> Result<Self, VsockError> {
        Self::meeting(guest_cid, listener, Way::Channels(channels))
    }

    fn meeting(guest_cid: u32, listener: UnixListener, way: Way) -> Result<Self, VsockError> {
        if guest_cid < 3 || guest_cid == u32::MAX {
            return Err(VsockError::ReservedCid(guest_cid));
        }
        let host = UnixHost::new(way).map_err(|(act, source)| VsockError::Host { act, source })?;
        let callers = Callers::new(listener).map_err(|source| VsockError::Host {
            act: "make the listener non-blocking",
            source,
        })?;
        Ok(Self {
            guest_cid,
            muxer: Muxer::new(guest_cid, host),
            callers,
            reset_event_due: false,
            stalled: false,
            warned: false,
            queue_counters: VsockQueueCounters::default(),
        })
    }

    /// Makes a device that goes on where a saved one stopped: its connections are gone, and the guest
    /// is told as soon as it gives the event queue a buffer.
    ///
    /// # Errors
    /// As [`new`](Self::new), or the state is another guest's.
    pub fn restore(
        config: VsockConfig,
        listener: UnixListener,
        state: VsockState,
    ) -> Result<Self, VsockError> {
        let other = VsockError::OtherCid {
            saved: state.guest_cid,
            configured: config.guest_cid,
        };
        let mut device = Self::new(config, listener)?;
        device.take_on(state).map_err(|_| other)?;
        Ok(device)
    }

    /// Goes on, as a device without a driver yet, where a saved one stopped.
    pub(super) fn take_on(&mut self, state: VsockState) -> Result<(), DeviceStateError> {
        let VsockState {
            guest_cid,
            next_local_port,
        } = state;
        if guest_cid != self.guest_cid {
            return Err(DeviceStateError {
                field: "the context id",
                saved: guest_cid.to_string(),
                here: self.guest_cid.to_string(),
            });
        }
        self.muxer.set_next_local_port(next_local_port);
        self.follow();
        Ok(())
    }

    /// Takes the place of another device that this driver was connected through: those connections are
    /// gone, and the guest is told as soon as it gives the event queue a buffer.
    pub fn follow(&mut self) {
        self.reset_event_due = true;
    }

    /// What [`restore`](Self::restore) needs.
    pub fn save(&self) -> VsockState {
        VsockState {
            guest_cid: self.guest_cid,
            next_local_port: self.muxer.next_local_port(),
        }
    }

    /// The feature bits that the device offers.
    pub fn features(&self) -> u64 {
        feature::VERSION_1 | feature::EVENT_IDX
    }

    /// The configuration space: the guest's context id, little-endian (virtio 1.2, 5.10.4).
    pub fn config_space(&self) -> [u8; 8] {
        u64::from(self.guest_cid).to_le_bytes()
    }

    /// What happened so far, by packet.
    pub fn counters(&self) -> VsockCounters {
        let mut counters = self.muxer.counters();
        counters.refused += self.callers.refused();
        counters
    }

    /// What happened so far, by queue.
    pub fn queue_counters(&self) -> VsockQueueCounters {
        self.queue_counters
    }

    /// Live connections.
    pub fn connections(&self) -> usize {
        self.muxer.connections()
    }

    /// Does all work that can be done now, without blocking: packets from the guest, host events,
    /// packets to the guest.
    ///
    /// Work is bounded per call; if some is left, the device's own descriptor is readable at once.
    pub fn handle(
        &mut self,
        cause: Cause,
        memory: &GuestMemory,
        queues: VsockQueues<'_>,
    ) -> Signals {
        let now = Instant::now();
        let mut left = false;
        if cause == Cause::Host {
            left |= self.take_host_events(now);
        }
        let mut signals = Signals::default();
        let mut counters = self.queue_counters;
        let rx = LiveQueue::new(queues.rx, memory, RX_LIMITS, &mut counters.rx);
        let tx = LiveQueue::new(queues.tx, memory, TX_LIMITS, &mut counters.tx);
        match (rx, tx) {
            (Ok(mut rx), Ok(mut tx)) => {
                self.stalled = false;
                self.activate();
                match self.exchange(&mut rx, &mut tx, now) {
                    Ok(more) => left |= more,
                    Err(error) => self.warn(&error),
                }
                signals.rx = rx.finish();
                signals.tx = tx.finish();
            }
            (Err(QueueError::NotReady), _) | (_, Err(QueueError::NotReady)) => {
                self.stalled = self.muxer.has_packets();
            }
            (Err(error), _) | (_, Err(error)) => self.warn(&error),
        }
        if self.reset_event_due {
            let event = LiveQueue::new(queues.event, memory, RX_LIMITS, &mut counters.event);
            if let Ok(mut event) = event {
                self.reset_event_due = !tell_reset(&mut event);
                signals.event = event.finish();
            }
        }
        self.queue_counters = counters;
        self.set_timer(now, left);
        signals
    }

    /// Forgets everything about the driver: all connections are closed. For a device reset by the
    /// driver or the transport; the next call of [`handle`](Self::handle) with queues that are ready
    /// starts anew.
    pub fn reset(&mut self) {
        let Self {
            guest_cid: _,
            muxer,
            callers,
            reset_event_due,
            stalled,
            warned,
            queue_counters: _,
        } = self;
        muxer.clear();
        callers.close(muxer.host());
        muxer.host_mut().set_timer(None, Instant::now());
        *reset_event_due = false;
        *stalled = false;
        *warned = false;
    }

    /// A driver is there: host programs may come.
    fn activate(&mut self) {
        if let Err(error) = self.callers.open(self.muxer.host())
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::error!(%error, "vsock: cannot watch the listening socket");
        }
    }

    /// True when there may be more of them.
    fn take_host_events(&mut self, now: Instant) -> bool {
        for _ in 0..POLLS {
            let events = self.muxer.host().poll();
            let all = events.len() < EVENTS;
            for (source, ready) in events {
                match source {
                    Source::Stream(token) => self.muxer.on_ready(token, ready, now),
                    Source::Listener => self.callers.knock(),
                    Source::Caller(id) => {
                        if let Some(call) = self.callers.listen_to(id, self.muxer.host()) {
                            self.muxer
                                .on_host_connect(call.stream, call.guest_port, now);
                        }
                    }
                    Source::Timer => self.muxer.host_mut().timer_fired(),
                }
            }
            self.muxer.on_time(now);
            self.callers.on_time(now);
            self.callers.let_in(self.muxer.host(), now);
            if all {
                return false;
            }
        }
        true
    }

    fn set_timer(&mut self, now: Instant, at_once: bool) {
        let stalled = self.stalled.then(|| now + NOT_READY_RETRY);
        let next = [self.muxer.next_time(), self.callers.next_time(), stalled];
        let at = match at_once {
            true => Some(now),
            false => next.into_iter().flatten().min(),
        };
        self.muxer.host_mut().set_timer(at, now);
    }

    fn warn(&mut self, error: &QueueError) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(%error, "vsock: the driver's queues cannot be used");
        }
    }
}

impl AsFd for VsockDevice {
    /// Readable when [`handle`](Self::handle) is to be called with [`Cause::Host`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.muxer.host().as_fd()
    }
}
