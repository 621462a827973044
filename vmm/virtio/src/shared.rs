//! What device and driver's registers share while a device's thread works: the interrupt, the
//! configuration space, doorbells, and whether the device gave up.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::ConfigSpace;

/// `InterruptStatus`: the device has used a buffer (virtio 1.2, 4.2.2).
pub const INTERRUPT_USED: u32 = 1;
/// `InterruptStatus`: the configuration or the status changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// The interrupt of one device: a line, and why it was raised.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that raises `line`: an irqfd of KVM, or anything that a test reads.
    pub fn new(line: EventFd) -> Self {
        Self {
            status: AtomicU32::new(0),
            line,
        }
    }

    /// Raises the line for the given reasons.
    pub fn raise(&self, reasons: u32) {
        // The reason comes first: the driver reads it when the line reaches it.
        self.status.fetch_or(reasons, Ordering::SeqCst);
        // A full eventfd is raised already.
        let _ = self.line.write(1);
    }

    /// The reasons that the driver has not acknowledged.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has seen these reasons.
    pub fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// As after a reset, or as it was saved.
    pub fn set_status(&self, reasons: u32) {
        self.status.store(reasons, Ordering::SeqCst);
    }

    /// For who raises the line on behalf of the device.
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}

/// The configuration space as the driver sees it.
#[derive(Debug, Default)]
pub struct SharedConfig {
    /// Its bytes.
    pub bytes: ConfigSpace,
    /// Increases whenever the device changes them (virtio 1.2, 2.5.1), modulo 2^32.
    pub generation: u32,
}

/// One device's shared part.
#[derive(Debug)]
pub struct Shared {
    /// Towards the driver.
    pub interrupt: Interrupt,
    /// Towards the device, one per queue.
    pub doorbells: Vec<EventFd>,
    /// Set by the device when it cannot go on; part of the status register until the next reset.
    pub needs_reset: AtomicBool,
    /// Register accesses that break a rule of the specification.
    pub register_errors: AtomicU64,
    config: Mutex<SharedConfig>,
}

impl Shared {
    /// For a device of `queues` queues.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new(queues: usize, config: ConfigSpace, line: EventFd) -> std::io::Result<Self> {
        let doorbell = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            interrupt: Interrupt::new(line),
            doorbells: (0..queues).map(doorbell).collect::<Result<_, _>>()?,
            needs_reset: AtomicBool::new(false),
            register_errors: AtomicU64::new(0),
            config: Mutex::new(SharedConfig {
                bytes: config,
                generation: 0,
            }),
        })
    }

    /// The configuration space; hold it for a copy only.
    pub fn config(&self) -> MutexGuard<'_, SharedConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the driver another configuration space if it differs; true if it does.
    pub fn show_config(&self, bytes: ConfigSpace) -> bool {
        let mut config = self.config();
        let differs = config.bytes != bytes;
        if differs {
            config.bytes = bytes;
            config.generation = config.generation.wrapping_add(1);
        }
        differs
    }

    /// Counts a broken rule.
    pub fn count_register_error(&self) {
        self.register_errors.fetch_add(1, Ordering::Relaxed);
    }
}
