//! The thread of one device.
//!
//! One thread per device, rather than one for all: a driver that floods one device takes only that
//! thread's time, and the host's scheduler shares it out; a device may sleep in a system call (a slow
//! disk) without holding up another; each kind of device gets a system call filter of its own. The
//! price is a stack of a few pages per device. It sleeps in epoll(7) unless there is work.
//!
//! The thread owns the device. Whoever wants something of it (the registers, the monitor) sends an
//! act to be done between two rounds of work, and waits for the answer:
//!
//! ```text
//!   vCPU: registers --act--> +-----------------------------+ <--act-- monitor: Control
//!                            | worker thread: Station      |
//!   driver --doorbell------> |   device, rings, host side  | --interrupt--> driver
//!                            +-----------------------------+
//! ```

use std::{
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use virtio_queue::Queue;
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd},
};

use crate::{
    Device, DeviceStateError, Event,
    station::{DeviceMetrics, HOST, Station},
    transport::{Attached, SavedDevice},
};

/// The epoll datum of the acts' eventfd.
const ACTS: u64 = u64::MAX - 1;

/// Events per wait: doorbells, acts, and the device's own.
const EVENTS: usize = 16;

/// The device's thread ended, which only a fault in the device makes it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device's thread is gone")]
pub struct WorkerGone;

type Act<D> = Box<dyn FnOnce(&mut Station<D>) + Send>;

/// A device's thread, as others see it. The thread ends with the last of them.
pub struct Worker<D: Device> {
    acts: Option<mpsc::Sender<Act<D>>>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl<D: Device> Worker<D> {
    /// Starts the thread. `at_start` runs on it before anything else: the place for its system call
    /// filter.
    pub(crate) fn spawn(
        name: &str,
        station: Station<D>,
        at_start: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let (sender, acts) = mpsc::channel();
        let event = EpollEvent::new(EventSet::IN, ACTS);
        let epoll: &Epoll = station.epoll();
        epoll.ctl(
            ControlOperation::Add,
            std::os::fd::AsRawFd::as_raw_fd(&wake),
            event,
        )?;
        let woken = wake.try_clone()?;
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            at_start();
            run(station, &acts, &woken);
        })?;
        Ok(Self {
            acts: Some(sender),
            wake,
            thread: Some(thread),
        })
    }

    /// Has the thread do something between two rounds of work; its answer.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Station<D>) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        let (answer, answered) = mpsc::sync_channel(1);
        let act: Act<D> = Box::new(move |station| {
            let _ = answer.send(act(station));
        });
        let acts = self.acts.as_ref().ok_or(WorkerGone)?;
        acts.send(act).map_err(|_| WorkerGone)?;
        let _ = self.wake.write(1);
        answered.recv().map_err(|_| WorkerGone)
    }
}

impl<D: Device> Drop for Worker<D> {
    fn drop(&mut self) {
        self.acts = None;
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run<D: Device>(mut station: Station<D>, acts: &mpsc::Receiver<Act<D>>, woken: &EventFd) {
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        let ready = match station.epoll().wait(-1, &mut events) {
            Ok(ready) => ready,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Nothing that a guest or a device does brings it about.
                tracing::error!(%error, "a device's thread cannot wait for events");
                return;
            }
        };
        for event in events.iter().take(ready) {
            match event.data() {
                ACTS => {
                    let _ = woken.read();
                    loop {
                        match acts.try_recv() {
                            Ok(act) => act(&mut station),
                            Err(mpsc::TryRecvError::Empty) => break,
                            Err(mpsc::TryRecvError::Disconnected) => return,
                        }
                    }
                }
                HOST => station.handle(Event::Host),
                queue => {
                    let queue = queue as usize;
                    if let Some(doorbell) = station.shared().doorbells.get(queue) {
                        let _ = doorbell.read();
                    }
                    station.handle(Event::Queue(queue));
                }
            }
        }
    }
}

/// The monitor's hold on a device of a known type.
pub struct Control<D: Device>(pub(crate) Arc<Worker<D>>);

impl<D: Device> Control<D> {
    /// Has the device's thread act on the device; its answer. The driver is told if the
    /// configuration space is another after it.
    ///
    /// # Errors
    /// When the thread is gone.
    pub fn call<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut D) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        self.0.ask(|station| station.call(act))
    }
}

impl<D: Device> Attached for Arc<Worker<D>> {
    fn activate(&self, features: u64, queues: Vec<Queue>) -> Result<(), WorkerGone> {
        self.ask(move |station| station.activate(features, queues))
    }

    fn reset(&self) -> Result<(), WorkerGone> {
        self.ask(Station::reset)
    }

    fn write_config(&self, offset: usize, bytes: &[u8]) -> Result<(), WorkerGone> {
        let bytes: crate::ConfigSpace = bytes.into();
        self.ask(move |station| station.write_config(offset, &bytes))
    }

    fn pause(&self) -> Result<(), WorkerGone> {
        self.ask(Station::pause)
    }

    fn resume(&self) -> Result<(), WorkerGone> {
        self.ask(Station::resume)
    }

    fn save(&self) -> Result<SavedDevice, WorkerGone> {
        self.ask(|station| {
            let (queues, state) = station.save();
            SavedDevice {
                queues,
                // A state is numbers, names and lists: JSON can hold it.
                state: serde_json::to_value(state).unwrap_or_default(),
            }
        })
    }

    fn restore(&self, state: serde_json::Value) -> Result<(), RestoreError> {
        let state = serde_json::from_value(state).map_err(|e| RestoreError::Form(e.to_string()))?;
        Ok(self.ask(move |station| station.restore(state))??)
    }

    fn metrics(&self) -> Result<DeviceMetrics, WorkerGone> {
        self.ask(|station| station.metrics())
    }
}

/// A device's own state could not be taken on.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is not this kind of device's.
    #[error("understand the saved device: {0}")]
    Form(String),
    /// It is another device's.
    #[error(transparent)]
    Other(#[from] DeviceStateError),
    /// The thread is gone.
    #[error(transparent)]
    Gone(#[from] WorkerGone),
}
