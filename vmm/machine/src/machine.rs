//! The machine, from its parts to its end.
//!
//! ```text
//!  Builder ──boot──> Machine: Paused <──pause/resume──> Running ──> ended (see `End`)
//! ```
//!
//! Whatever stands still, stands still in this order: vCPUs, then devices; and goes on in the other.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use isopod_hypervisor::{
    Vcpu, VcpuCounters, Vm,
    runner::{End, Runners},
};
use isopod_memory::GuestMemory;
use isopod_virtio::{DeviceMetrics, WorkerGone, transport::MmioTransport};

use crate::{Host, bus::MachineBus};

mod builder;
mod error;
mod snapshot;

pub use builder::{Builder, Kernel};
pub use error::MachineError;
pub use snapshot::{MachineState, Sharing};

/// What distinguishes one machine from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Processors online at boot; at least 1.
    pub online_cpus: u32,
    /// Processors present; at least as many.
    pub cpus: u32,
    /// Processors that may run from the boot on; at least those online at boot. A machine that is
    /// restored has as many as when it was saved.
    pub granted_cpus: u32,
    /// RAM.
    pub memory_mib: u64,
    /// Memory that can be added; a multiple of 128 MiB.
    pub hotplug_mib: u64,
    /// Back it with 2 MiB pages.
    pub huge_pages: bool,
    /// What the host is.
    pub host: Host,
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First.
    pub start: u64,
    /// Length.
    pub bytes: u64,
}

/// A device and its registers.
struct Slot {
    name: String,
    transport: Arc<MmioTransport>,
}

/// What every thread does first: its system call filter.
pub type Prepare = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Figures of a machine.
#[derive(Debug, Default)]
pub struct MachineMetrics {
    /// By processor; one that runs at the moment is left out.
    pub vcpus: Vec<Option<VcpuCounters>>,
    /// Processors that may run.
    pub granted: u32,
    /// By slot, with its name.
    pub devices: Vec<(String, DeviceMetrics)>,
    /// Accesses that nobody answered.
    pub unanswered: u64,
}

/// A machine with a guest in it.
pub struct Machine {
    // First: no vCPU may run when the rest goes.
    runners: Runners,
    bus: Arc<MachineBus>,
    devices: Vec<Slot>,
    vm: Vm,
    memory: GuestMemory,
}

impl Machine {
    /// Lets the guest run, for the first time or again.
    ///
    /// # Errors
    /// It has ended, or a device's thread has.
    pub fn resume(&self) -> Result<(), MachineError> {
        self.each_device(MmioTransport::resume)?;
        if self.runners.is_paused() {
            let told = |vcpu: &Vcpu| {
                vcpu.clock_stood_still();
                Ok(())
            };
            self.runners.each(told)?;
        }
        Ok(self.runners.resume()?)
    }

    /// Brings processors and devices to rest.
    ///
    /// # Errors
    /// It has ended, or something does not come to rest.
    pub fn pause(&self) -> Result<(), MachineError> {
        self.runners.pause()?;
        self.each_device(MmioTransport::pause).map(drop)
    }

    /// Whether it is at rest.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.runners.is_paused()
    }

    /// Lets so many processors run, those with the lowest numbers; the others stand still, whatever the
    /// guest does (see [`isopod_hypervisor::runner`]). One that the guest still uses is better not among
    /// them: a kernel waits for its processors.
    ///
    /// # Errors
    /// There are not so many, or none would be left; it has ended; a processor does not come to rest in
    /// time (it stays without leave).
    pub fn grant(&self, cpus: u32) -> Result<(), MachineError> {
        Ok(self.runners.grant(cpus)?)
    }

    /// Whether [`Self::grant`] could be asked for so many.
    ///
    /// # Errors
    /// There are not so many, or none would be left.
    pub fn check_grant(&self, cpus: u32) -> Result<(), MachineError> {
        Ok(self.runners.check_grant(cpus)?)
    }

    /// The guest's memory. Its contents are still only while the machine is paused.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Figures.
    ///
    /// # Errors
    /// A device's thread is gone.
    pub fn metrics(&self) -> Result<MachineMetrics, MachineError> {
        let figures = self.each_device(MmioTransport::metrics)?;
        let names = self.devices.iter().map(|slot| slot.name.clone());
        Ok(MachineMetrics {
            vcpus: self.runners.counters(),
            granted: self.runners.granted(),
            devices: names.zip(figures).collect(),
            unanswered: self.bus.unanswered.load(Ordering::Relaxed),
        })
    }

    /// Ends the guest, if it has not ended, and tells why it did.
    ///
    /// # Errors
    /// A processor does not come to rest.
    pub fn stop(&mut self) -> Result<End, MachineError> {
        let end = self.runners.stop()?;
        self.bus.serial.flush();
        Ok(end)
    }

    fn each_device<T>(
        &self,
        act: impl Fn(&MmioTransport) -> Result<T, WorkerGone>,
    ) -> Result<Vec<T>, MachineError> {
        let one = |slot: &Slot| {
            act(&slot.transport).map_err(|source| MachineError::Device {
                name: slot.name.clone(),
                source,
            })
        };
        self.devices.iter().map(one).collect()
    }
}
