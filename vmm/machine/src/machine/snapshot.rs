//! A paused machine as data, and another process's machine that goes on from it.
//!
//! ```text
//!   Machine: paused ──save──> MachineState, memory ──Builder::saved, attach, restore──> Machine: paused
//! ```
//!
//! The data may be damaged or somebody's invention: everything in it is checked by who takes it on (the
//! devices, their transports, KVM), and here is checked that it is this machine's.

use std::{fs::File, io::Write, os::fd::OwnedFd};

use isopod_hypervisor::{
    Vcpu,
    state::{VcpuState, VmState},
};
use isopod_memory::{AddressSpace, GuestMemory, GuestMemoryRegion, saved};
use isopod_virtio::{
    DeviceType,
    transport::{MmioTransport, TransportState},
};
use serde::{Deserialize, Serialize};

use super::{Builder, Machine, MachineConfig, MachineError, Prepare, Slot};
use crate::{ram, serial::SerialState};

/// Of [`MachineState`].
const VERSION: u32 = 3;

/// A paused machine as data, without its memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    version: u32,
    /// Guest-physical addresses and lengths.
    memory: Vec<(u64, u64)>,
    vm: VmState,
    vcpus: Vec<VcpuState>,
    /// Those below this number may run.
    granted: u32,
    devices: Vec<(String, TransportState)>,
    serial: SerialState,
    /// The register that is selected.
    clock: u8,
}

/// How a restored machine has its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Mapped from the file, page by page as it is touched. For machines without devices that other
    /// processes serve.
    Private,
    /// Copied into memory that other processes can map.
    Shared,
}

impl Builder {
    /// In place of [`Self::new`], for a machine that will be restored: its memory is that of a file
    /// which [`isopod_memory::saved::save`] wrote.
    ///
    /// # Errors
    /// As [`Self::new`]; the file cannot be used.
    pub fn saved(
        device: OwnedFd,
        config: MachineConfig,
        memory: &File,
        sharing: Sharing,
    ) -> Result<Self, MachineError> {
        // Pages of a file are small.
        let memory = if sharing == Sharing::Private && !config.huge_pages {
            saved::map(memory, &ram::ranges(config.memory_mib, config.hotplug_mib)?)?
        } else {
            let ram = ram::make(config.memory_mib, config.hotplug_mib, config.huge_pages)?;
            saved::load(&ram, memory)?;
            ram
        };
        Self::with_memory(device, config, memory)
    }

    /// In place of [`Self::boot`]: the machine goes on where another of the same parts was saved. It is
    /// paused.
    ///
    /// # Errors
    /// The state is another machine's, or the host refuses.
    pub fn restore(
        mut self,
        state: MachineState,
        console: Box<dyn Write + Send>,
        prepare: &Prepare,
        on_end: Box<dyn FnOnce() + Send>,
    ) -> Result<Machine, MachineError> {
        let MachineState {
            version,
            memory,
            vm,
            vcpus,
            granted,
            devices,
            serial,
            clock,
        } = state;
        if version != VERSION {
            return Err(differs("its version", &version, &VERSION));
        }
        let ranges = ranges(&self.memory);
        if ranges != memory {
            return Err(differs("its memory", &memory, &ranges));
        }
        let named = |slot: &Slot| slot.name.clone();
        let here: Vec<String> = self.devices.iter().map(named).collect();
        let saved: Vec<String> = devices.iter().map(|(name, _)| name.clone()).collect();
        if here != saved {
            return Err(differs("its devices", &saved, &here));
        }
        let present = self.config.cpus as usize;
        if vcpus.len() != present {
            let what = "its number of processors";
            return Err(differs(what, &vcpus.len(), &present));
        }
        check_served(&devices)?;
        let fresh = self.make_vcpus()?;
        self.vm.restore(&vm)?;
        for (vcpu, state) in fresh.iter().zip(&vcpus) {
            vcpu.restore(state)?;
        }
        for (slot, (name, state)) in self.devices.iter().zip(devices) {
            slot.transport
                .restore(state)
                .map_err(|source| MachineError::Attach { name, source })?;
        }
        let machine = self.assemble(fresh, granted, console, prepare, on_end)?;
        machine.bus.serial.restore(serial);
        machine.bus.clock.restore(clock);
        Ok(machine)
    }
}

impl Machine {
    /// The paused machine as data, without its memory.
    ///
    /// # Errors
    /// It is not paused, a device cannot be saved, or KVM refuses.
    pub fn save(&self) -> Result<MachineState, MachineError> {
        let vcpus = self.runners.each(Vcpu::save)?;
        let states = self.each_device(MmioTransport::save)?;
        let names = self.devices.iter().map(|slot| slot.name.clone());
        let devices: Vec<_> = names.zip(states).collect();
        check_served(&devices)?;
        Ok(MachineState {
            version: VERSION,
            memory: ranges(&self.memory),
            vm: self.vm.save()?,
            vcpus,
            granted: self.runners.granted(),
            devices,
            serial: self.bus.serial.save(),
            clock: self.bus.clock.save(),
        })
    }
}

fn differs(what: &str, saved: &dyn std::fmt::Debug, here: &dyn std::fmt::Debug) -> MachineError {
    MachineError::State(format!("{what}: saved {saved:?}, here {here:?}"))
}

fn ranges(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let range = |region: &isopod_memory::GuestRegion| (region.start_addr().0, region.len());
    memory.iter().map(range).collect()
}

/// A file system that a guest has mounted is in the process that serves it: open files, and numbers that
/// the guest knows them by. Before the first request there is nothing of it; a fresh process can take
/// over.
fn check_served(devices: &[(String, TransportState)]) -> Result<(), MachineError> {
    let mounted = devices.iter().find(|(_, state)| {
        state.device_type == DeviceType::FileSystem as u32
            && state
                .registers
                .queues
                .iter()
                .any(|queue| queue.next_avail != 0)
    });
    match mounted {
        None => Ok(()),
        Some((name, _)) => Err(MachineError::Elsewhere {
            name: name.clone(),
            reason: "the guest has mounted it, and what it has open there is in the process that \
                     serves it: it can be saved only before",
        }),
    }
}
