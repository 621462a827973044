//! A machine, until its guest is about to take its first instruction.

use std::{
    fs::File,
    io::Write,
    os::fd::OwnedFd,
    sync::{Arc, atomic::AtomicU64},
};

use isopod_hypervisor::{
    Bus, Doorbell, FileMapping, HotplugMemory, HypervisorError, Vcpu, Vm, runner::Runners,
};
use isopod_memory::{AddressSpace, GuestMemory, GuestMemoryHandle, GuestMemoryRegion};
use isopod_virtio::{
    Control, Device,
    transport::{MmioTransport, Wiring},
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Machine, MachineConfig, MachineError, Prepare, Region, Slot};
use crate::{
    BootProtocol, boot,
    bus::{MachineBus, MmioDevice},
    clock::Clock,
    command_line, layout, ram,
    serial::Serial,
};

/// What a machine boots.
pub struct Kernel<'a> {
    /// An uncompressed ELF file.
    pub file: &'a mut File,
    /// How it is entered.
    pub protocol: BootProtocol,
    /// Its parameters, without those that say what this machine is.
    pub parameters: &'a str,
}

/// A machine that is being put together.
pub struct Builder {
    pub(super) config: MachineConfig,
    pub(super) vm: Vm,
    /// What the guest boots with.
    boot_memory: GuestMemory,
    pub(super) memory: GuestMemory,
    handle: GuestMemoryHandle,
    hotplug: Option<(Region, HotplugMemory)>,
    pub(super) devices: Vec<Slot>,
    /// Whether there are interrupt controllers: they come after what is shown as memory.
    interrupts: bool,
    /// End of what is shown above 4 GiB.
    end: u64,
}

impl Builder {
    /// Makes a VM on `/dev/kvm` and its RAM.
    ///
    /// # Errors
    /// A size out of range, or the host refuses.
    pub fn new(device: OwnedFd, config: MachineConfig) -> Result<Self, MachineError> {
        let memory = ram::make(config.memory_mib, config.hotplug_mib, config.huge_pages)?;
        Self::with_memory(device, config, memory)
    }

    pub(super) fn with_memory(
        device: OwnedFd,
        config: MachineConfig,
        all: GuestMemory,
    ) -> Result<Self, MachineError> {
        let MachineConfig {
            online_cpus: online,
            cpus: present,
            granted_cpus: granted,
            ..
        } = config;
        let some = (1..=granted).contains(&online);
        if !some || granted > present || present > layout::MAX_CPUS {
            return Err(MachineError::Cpus {
                online,
                granted,
                present,
            });
        }
        let hotplug = ram::hotplug(config.memory_mib, config.hotplug_mib);
        let boot = match hotplug {
            None => all.clone(),
            Some(Region { start, bytes }) => {
                isopod_memory::without(&all, start, bytes).map_err(ram::RamError::from)?
            }
        };
        let vm = Vm::new(device)?;
        vm.set_memory(&boot)?;
        let hotplug = match hotplug {
            None => None,
            Some(region) => Some((region, vm.hotplug(&all, region.start, region.bytes)?)),
        };
        let end = all
            .iter()
            .map(|region| region.start_addr().0 + region.len())
            .max()
            .unwrap_or(0);
        Ok(Self {
            config,
            vm,
            handle: GuestMemoryHandle::new(all.clone()),
            boot_memory: boot,
            memory: all,
            hotplug,
            devices: Vec::new(),
            interrupts: false,
            end,
        })
    }

    /// Where memory can be added, and what adds it; once, for the device that the guest asks for it.
    pub fn take_hotplug(&mut self) -> Option<(Region, HotplugMemory)> {
        self.hotplug.take()
    }

    /// Shows the guest a file as memory that it cannot write, behind RAM. Quicker before the first device
    /// than after it.
    ///
    /// # Errors
    /// The file cannot be mapped, or there is no address for it.
    pub fn show_file(&mut self, file: &File) -> Result<Region, MachineError> {
        let mapping = FileMapping::new(file)?;
        let bytes = mapping.bytes();
        let start = layout::file_after(self.end, self.vm.address_bits())
            .ok_or(MachineError::NoAddress { bytes })?;
        self.vm.map_file(start, mapping)?;
        self.end = start.saturating_add(bytes);
        Ok(Region { start, bytes })
    }

    /// Puts a device into the next slot. Its thread, called `name`, runs `prepare` first. `on_failure`
    /// is told when the device cannot go on before the driver resets it.
    ///
    /// # Errors
    /// No slot is left, or the host refuses a thread or descriptor.
    pub fn attach<D: Device>(
        &mut self,
        name: &str,
        device: D,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Result<Control<D>, MachineError> {
        let owned = || name.to_owned();
        let (window, line) = layout::slot(self.devices.len())
            .ok_or_else(|| MachineError::NoSlot { name: owned() })?;
        let interrupt =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| MachineError::Interrupt {
                name: owned(),
                source,
            })?;
        self.create_interrupt_controllers()?;
        self.vm.register_interrupt(&interrupt, line)?;
        let told = owned();
        let wiring = Wiring {
            memory: self.handle.clone(),
            interrupt,
            on_failure: Box::new(move |error| {
                tracing::warn!(device = told, %error, "a device waits for a reset");
            }),
        };
        let (transport, control) =
            MmioTransport::attach(name, device, wiring, prepare).map_err(|source| {
                MachineError::Attach {
                    name: owned(),
                    source,
                }
            })?;
        for doorbell in transport.doorbells() {
            let at = Doorbell {
                address: window + doorbell.offset,
                value: doorbell.value,
            };
            self.vm.register_doorbell(doorbell.eventfd, at)?;
        }
        self.devices.push(Slot {
            name: owned(),
            transport: Arc::new(transport),
        });
        Ok(control)
    }

    /// Loads the kernel and starts the processors' threads, paused. What the kernel prints before it
    /// has drivers goes to `console`; `on_end` is called when the guest runs no further.
    ///
    /// # Errors
    /// The kernel or its command line cannot be used, or the host refuses.
    pub fn boot(
        mut self,
        kernel: Kernel<'_>,
        console: Box<dyn Write + Send>,
        prepare: &Prepare,
        on_end: Box<dyn FnOnce() + Send>,
    ) -> Result<Machine, MachineError> {
        let config = self.config;
        let line = command_line::compose(
            kernel.parameters,
            config.host,
            self.devices.len(),
            config.online_cpus,
        )?;
        let entry = boot::load(
            &self.boot_memory,
            kernel.file,
            kernel.protocol,
            &line,
            config.cpus,
        )?;
        let vcpus = self.make_vcpus()?;
        if let Some(first) = vcpus.first() {
            first.enter_at(&entry)?;
        }
        self.assemble(vcpus, config.granted_cpus, console, prepare, on_end)
    }

    fn create_interrupt_controllers(&mut self) -> Result<(), HypervisorError> {
        if !std::mem::replace(&mut self.interrupts, true) {
            self.vm.create_interrupt_controllers()?;
        }
        Ok(())
    }

    pub(super) fn make_vcpus(&mut self) -> Result<Vec<Vcpu>, HypervisorError> {
        self.create_interrupt_controllers()?;
        let count = self.config.cpus;
        (0..count)
            .map(|id| self.vm.create_vcpu(id, count))
            .collect()
    }

    pub(super) fn assemble(
        self,
        vcpus: Vec<Vcpu>,
        granted: u32,
        console: Box<dyn Write + Send>,
        prepare: &Prepare,
        on_end: Box<dyn FnOnce() + Send>,
    ) -> Result<Machine, MachineError> {
        let Self {
            config: _,
            vm,
            boot_memory: _,
            memory,
            handle: _,
            hotplug: _,
            devices,
            interrupts: _,
            end: _,
        } = self;
        let window = |slot: &Slot| Arc::clone(&slot.transport) as Arc<dyn MmioDevice>;
        let bus = Arc::new(MachineBus {
            windows: devices.iter().map(window).collect(),
            serial: Serial::new(console),
            clock: Clock::default(),
            unanswered: AtomicU64::new(0),
        });
        let as_bus = Arc::clone(&bus) as Arc<dyn Bus>;
        let runners = Runners::start(vcpus, granted, &as_bus, prepare, on_end)?;
        Ok(Machine {
            runners,
            bus,
            devices,
            vm,
            memory,
        })
    }
}
