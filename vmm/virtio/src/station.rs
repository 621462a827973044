//! A device, its rings and its thread's part of the transport: everything that the device's own
//! thread owns.
//!
//! ```text
//!              activate             device or rings fail
//!  Inactive ------------> Active --------------------------> Failed
//!     ^                    |  ^  pause / resume: no round of work between them
//!     |       reset        |
//!     +--------------------+------------------ reset ----------+
//! ```

use std::{
    os::fd::AsRawFd,
    sync::{Arc, atomic::Ordering},
};

use isopod_memory::{GuestAddressSpace, GuestMemoryHandle};
use serde::{Deserialize, Serialize};
use virtio_queue::Queue;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::{
    Activation, Device, DeviceCounters, DeviceError, Event, QueueCounters, QueueError, QueueState,
    Rings,
    queue::check_rings,
    shared::{INTERRUPT_CONFIG, Shared},
};

/// The epoll datum of the device's own descriptor; doorbells have their queue's index.
pub(crate) const HOST: u64 = u64::MAX;

/// What one device did, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMetrics {
    /// By queue.
    pub queues: Vec<QueueCounters>,
    /// The device's own, by name.
    pub device: Vec<(String, u64)>,
    /// Register accesses that break a rule.
    pub register_errors: u64,
    /// Why the device waits for a reset, if it does.
    pub failure: Option<String>,
}

/// Told when a device cannot go on.
pub type OnFailure = Box<dyn FnMut(&DeviceError) + Send>;

/// What an active device works on.
struct Active {
    queues: Vec<Queue>,
    features: u64,
}

enum Phase {
    Inactive,
    Active(Active),
    Failed(String),
}

/// See the [module](self).
pub struct Station<D> {
    device: D,
    shared: Arc<Shared>,
    memory: GuestMemoryHandle,
    epoll: Epoll,
    counters: Vec<QueueCounters>,
    phase: Phase,
    paused: bool,
    on_failure: OnFailure,
}

impl<D: Device> Station<D> {
    pub(crate) fn new(
        device: D,
        shared: Arc<Shared>,
        memory: GuestMemoryHandle,
        on_failure: OnFailure,
    ) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        if !device.served_elsewhere() {
            for (index, doorbell) in shared.doorbells.iter().enumerate() {
                watch(&epoll, doorbell, index as u64)?;
            }
        }
        Ok(Self {
            counters: vec![QueueCounters::default(); shared.doorbells.len()],
            device,
            shared,
            memory,
            epoll,
            phase: Phase::Inactive,
            paused: false,
            on_failure,
        })
    }

    pub(crate) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Starts the device with rings that a driver has set up. Failure is the device's state, not the
    /// caller's error.
    pub(crate) fn activate(&mut self, features: u64, queues: Vec<Queue>) {
        let activation = Activation {
            features,
            memory: &self.memory,
            queues: &queues,
            doorbells: &self.shared.doorbells,
            interrupt: self.shared.interrupt.line(),
        };
        let started = check_all_rings(&activation).and_then(|()| self.device.activate(&activation));
        self.phase = Phase::Active(Active { queues, features });
        match started {
            Ok(()) => {
                self.go_on();
                self.tell_config(true);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Stops the device; when this returns it touches the guest's memory no more.
    pub(crate) fn reset(&mut self) {
        let Self {
            device,
            shared,
            memory: _,
            epoll,
            counters: _,
            phase,
            paused: _,
            on_failure: _,
        } = self;
        if let Some(host) = device.host_events() {
            unwatch(epoll, &host);
        }
        device.reset();
        *phase = Phase::Inactive;
        shared.needs_reset.store(false, Ordering::SeqCst);
        shared.interrupt.set_status(0);
        self.tell_config(false);
    }

    /// One round of work.
    pub(crate) fn handle(&mut self, event: Event) {
        if self.paused {
            return;
        }
        let done = self.round(|device, rings| device.handle(event, rings));
        self.tell_config(true);
        if let Err(error) = done {
            self.fail(&error);
        }
    }

    pub(crate) fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        self.device.write_config(offset, bytes);
        // The driver's own doing is no news to it.
        self.tell_config(false);
    }

    /// An act of the monitor on the device: a disk arrives, the balloon's target changes. Its queues
    /// are looked at afterwards, since more may be possible now.
    pub fn call<T>(&mut self, act: impl FnOnce(&mut D) -> T) -> T {
        let answer = act(&mut self.device);
        self.tell_config(true);
        self.ring_all();
        answer
    }

    pub(crate) fn pause(&mut self) {
        if self.paused {
            return;
        }
        if let Err(error) = self.round(|device, rings| device.pause(rings)) {
            self.fail(&error);
        }
        self.paused = true;
        if let Some(host) = self.device.host_events() {
            unwatch(&self.epoll, &host);
        }
    }

    pub(crate) fn resume(&mut self) {
        if !std::mem::replace(&mut self.paused, false) {
            return;
        }
        let Phase::Active(active) = &self.phase else {
            return;
        };
        let activation = Activation {
            features: active.features,
            memory: &self.memory,
            queues: &active.queues,
            doorbells: &self.shared.doorbells,
            interrupt: self.shared.interrupt.line(),
        };
        match self.device.resume(&activation) {
            Ok(()) => self.go_on(),
            Err(error) => self.fail(&error),
        }
    }

    /// A restored device begins paused.
    pub(crate) fn restore(&mut self, state: D::State) -> Result<(), crate::DeviceStateError> {
        self.paused = true;
        let restored = self.device.restore(state);
        self.tell_config(false);
        restored
    }

    /// The rings' positions, if the device is active, and the device.
    pub(crate) fn save(&self) -> (Option<Vec<QueueState>>, D::State) {
        let queues = match &self.phase {
            Phase::Active(active) => Some(active.queues.iter().map(QueueState::from).collect()),
            Phase::Inactive | Phase::Failed(_) => None,
        };
        (queues, self.device.save())
    }

    pub(crate) fn metrics(&self) -> DeviceMetrics {
        let own: DeviceCounters = self.device.counters();
        DeviceMetrics {
            queues: self.counters.clone(),
            device: own.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
            register_errors: self.shared.register_errors.load(Ordering::Relaxed),
            failure: match &self.phase {
                Phase::Failed(reason) => Some(reason.clone()),
                Phase::Inactive | Phase::Active(_) => None,
            },
        }
    }

    fn round(
        &mut self,
        work: impl FnOnce(&mut D, &mut Rings<'_>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Phase::Active(active) = &mut self.phase else {
            return Ok(());
        };
        let memory = self.memory.memory();
        let mut rings = Rings {
            memory: &memory,
            queues: &mut active.queues,
            counters: &mut self.counters,
            features: active.features,
            shared: &self.shared,
        };
        work(&mut self.device, &mut rings)
    }

    /// Watches the host's side again, and looks at every queue: notifications may have been missed.
    fn go_on(&mut self) {
        if !matches!(self.phase, Phase::Active(_)) || self.paused {
            return;
        }
        if let Some(host) = self.device.host_events()
            && let Err(source) = watch(&self.epoll, &host, HOST)
        {
            let act = "watch the device's descriptor";
            self.fail(&DeviceError::Host { act, source });
            return;
        }
        self.ring_all();
    }

    fn ring_all(&self) {
        if !self.device.served_elsewhere() {
            for doorbell in &self.shared.doorbells {
                let _ = doorbell.write(1);
            }
        }
    }

    fn tell_config(&self, by_interrupt: bool) {
        if self.shared.show_config(self.device.config())
            && by_interrupt
            && matches!(self.phase, Phase::Active(_))
        {
            self.shared.interrupt.raise(INTERRUPT_CONFIG);
        }
    }

    fn fail(&mut self, error: &DeviceError) {
        if let Some(host) = self.device.host_events() {
            unwatch(&self.epoll, &host);
        }
        self.device.reset();
        self.phase = Phase::Failed(error.to_string());
        // The host has the reason before the guest can see the failure and act on it.
        (self.on_failure)(error);
        self.shared.needs_reset.store(true, Ordering::SeqCst);
        self.shared.interrupt.raise(INTERRUPT_CONFIG);
    }
}

fn watch(epoll: &Epoll, fd: &impl AsRawFd, datum: u64) -> std::io::Result<()> {
    let event = EpollEvent::new(EventSet::IN, datum);
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
}

fn unwatch(epoll: &Epoll, fd: &impl AsRawFd) {
    // Not watched, in a device that never got so far.
    let _ = epoll.ctl(
        ControlOperation::Delete,
        fd.as_raw_fd(),
        EpollEvent::default(),
    );
}

/// Rings outside of memory stop a device before it starts.
fn check_all_rings(activation: &Activation<'_>) -> Result<(), DeviceError> {
    let memory = activation.memory.memory();
    for (index, queue) in activation.queues.iter().enumerate() {
        match check_rings(queue, &memory) {
            Ok(()) | Err(QueueError::NotReady) => {}
            Err(source) => return Err(DeviceError::Queue { index, source }),
        }
    }
    Ok(())
}
