//! One virtual machine: memory slots, interrupt controllers, doorbells.

use std::{
    fs::File,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use isopod_memory::{AddressSpace, GuestMemory, GuestMemoryRegion};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::{FileMapping, HotplugMemory, HypervisorError, Vcpu, error::kvm};

/// KVM's one and only stable API (kernel, Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
/// Three pages that Intel's virtualization wants for real mode, below 4 GiB and in no memory slot.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page more, beside them.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// What a guest of this KVM can count on, looked at before a VM is made.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "interrupt controllers in the kernel"),
    (Cap::Pit2, "a timer in the kernel"),
    (Cap::Irqfd, "interrupts by eventfd"),
    (Cap::Ioeventfd, "doorbells by eventfd"),
    (Cap::UserMemory, "memory slots"),
    (Cap::ImmediateExit, "immediate_exit"),
    (Cap::ReadonlyMem, "memory that a guest cannot write"),
];

/// Where a guest's write becomes an event without this process running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Guest-physical address of a 4-byte register.
    pub address: u64,
    /// The value that rings.
    pub value: u32,
}

/// A virtual machine. vCPUs are made from it and keep it alive on the kernel's side.
pub struct Vm {
    fd: Arc<VmFd>,
    cpuid: CpuId,
    tsc_deadline: bool,
    slots: Arc<Mutex<Slots>>,
}

/// What the guest sees as memory must stay mapped for as long as a vCPU could run: it is owned here, by
/// the VM and its vCPUs together.
pub(crate) struct Slots {
    next: u32,
    limit: u32,
    memory: GuestMemory,
    files: Vec<FileMapping>,
}

impl Vm {
    /// Makes a VM on `/dev/kvm` as it was opened before the jail. Memory comes next, then
    /// [`Self::create_interrupt_controllers`], then all else.
    ///
    /// # Errors
    /// KVM lacks something or refuses.
    pub fn new(device: OwnedFd) -> Result<Self, HypervisorError> {
        // SAFETY: the descriptor is owned and given away here. Should it not be KVM's, the first ioctl
        // fails.
        let host = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        match host.get_api_version() {
            API_VERSION => {}
            other => return Err(HypervisorError::ApiVersion(other)),
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !host.check_extension(*cap)) {
            return Err(HypervisorError::Lacks(name));
        }
        let cpuid = host
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("tell what CPUID it supports"))?;
        let tsc_deadline = host.check_extension(Cap::TscDeadlineTimer);
        let limit = u32::try_from(host.get_nr_memslots()).unwrap_or(u32::MAX);
        let fd = host.create_vm().map_err(kvm("create a VM"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(kvm("place the identity map"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(kvm("place the TSS"))?;
        Ok(Self {
            fd: Arc::new(fd),
            cpuid,
            tsc_deadline,
            slots: Arc::new(Mutex::new(Slots {
                next: 0,
                limit,
                memory: GuestMemory::new(),
                files: Vec::new(),
            })),
        })
    }

    /// Adds interrupt controllers and timer; once, before anything interrupts and before vCPUs are made.
    ///
    /// After the memory: their registers' places on KVM's buses start a grace period that takes its time
    /// (`call_srcu` in `kvm_io_bus_register_dev`), and a memory slot would wait for its end, 6 ms on a
    /// machine where it otherwise takes 0.3.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn create_interrupt_controllers(&self) -> Result<(), HypervisorError> {
        self.fd
            .create_irq_chip()
            .map_err(kvm("create interrupt controllers"))?;
        let pit = kvm_pit_config {
            // Port 0x61 is answered in the kernel too: the guest's calibration polls it.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        self.fd.create_pit2(pit).map_err(kvm("create a timer"))
    }

    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// It cannot be opened for reading and writing.
    pub fn open_device() -> Result<OwnedFd, HypervisorError> {
        let device = File::options().read(true).write(true).open("/dev/kvm");
        device
            .map(OwnedFd::from)
            .map_err(|source| HypervisorError::Kvm {
                act: "be opened at /dev/kvm",
                source,
            })
    }

    /// Gives the guest its memory: every region becomes a slot. Called once, before vCPUs are made.
    ///
    /// # Errors
    /// KVM refuses a slot.
    pub fn set_memory(&self, memory: &GuestMemory) -> Result<(), HypervisorError> {
        let mut slots = self.slots();
        for region in memory.iter() {
            let address = region.start_addr();
            let host = memory
                .get_host_address(address)
                .map_err(|_| HypervisorError::FindMemory { address: address.0 })?;
            let slot = kvm_userspace_memory_region {
                slot: slots.take(address.0)?,
                flags: 0,
                guest_phys_addr: address.0,
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the region is mapped, shared, and so long; `slots.memory` keeps it so for as long
            // as the VM exists. No Rust reference to its bytes is ever made (see `isopod_memory`).
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(kvm("give the guest memory"))?;
        }
        slots.memory = memory.clone();
        Ok(())
    }

    /// Shows the guest a file as memory that it can read and execute, and that it cannot write whatever
    /// it does: the file is mapped for reading only and the slot says so too (virtio-pmem).
    ///
    /// # Errors
    /// KVM refuses the slot.
    pub fn map_file(&self, address: u64, file: FileMapping) -> Result<(), HypervisorError> {
        let mut slots = self.slots();
        let slot = kvm_userspace_memory_region {
            slot: slots.take(address)?,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address,
            memory_size: file.bytes(),
            userspace_addr: file.address(),
        };
        // SAFETY: the mapping is so long and is kept by `slots.files` for as long as the VM exists.
        unsafe { self.fd.set_user_memory_region(slot) }.map_err(kvm("show the guest a file"))?;
        slots.files.push(file);
        Ok(())
    }

    /// Memory that the guest gets and loses while it runs: the part of `all` from `start` on, of which
    /// it sees nothing at first. Called after [`Self::set_memory`], before vCPUs are made.
    ///
    /// # Errors
    /// It is no one region of `all`, or there are not so many slots.
    pub fn hotplug(
        &self,
        all: &GuestMemory,
        start: u64,
        bytes: u64,
    ) -> Result<HotplugMemory, HypervisorError> {
        let chunks = HotplugMemory::chunks(bytes);
        let mut slots = self.slots();
        let end = u64::from(slots.next).saturating_add(chunks);
        let (Ok(next), true) = (u32::try_from(end), end <= slots.limit.into()) else {
            return Err(HypervisorError::NoSlot { address: start });
        };
        let first = std::mem::replace(&mut slots.next, next);
        slots.memory = all.clone();
        HotplugMemory::new(Arc::clone(&self.fd), all.clone(), start, bytes, first)
    }

    /// Bits of a guest-physical address, as the guest is told them (CPUID 0x80000008).
    #[must_use]
    pub fn address_bits(&self) -> u32 {
        const SIZES: u32 = 0x8000_0008;
        /// What every 64-bit processor has.
        const LEAST: u32 = 36;
        let entries = self.cpuid.as_slice().iter();
        let sizes = entries.filter(|entry| entry.function == SIZES);
        sizes.map(|entry| entry.eax & 0xff).max().unwrap_or(LEAST)
    }

    /// Makes vCPU `id` of `count`, told what the policy tells it.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn create_vcpu(&self, id: u32, count: u32) -> Result<Vcpu, HypervisorError> {
        let fd = self
            .fd
            .create_vcpu(id.into())
            .map_err(kvm("create a vCPU"))?;
        let cpuid = self.cpuid_for(id, count)?;
        fd.set_cpuid2(&cpuid).map_err(kvm("set CPUID"))?;
        let memory = self.slots().memory.clone();
        Vcpu::new(fd, id, memory, Arc::clone(&self.slots))
    }

    /// Lets an event raise an interrupt line, edge-triggered, without this process running.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn register_interrupt(&self, event: &EventFd, line: u32) -> Result<(), HypervisorError> {
        self.fd
            .register_irqfd(event, line)
            .map_err(kvm("tie an event to an interrupt"))
    }

    /// Lets a guest's write become an event.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn register_doorbell(
        &self,
        event: &EventFd,
        Doorbell { address, value }: Doorbell,
    ) -> Result<(), HypervisorError> {
        let address = IoEventAddress::Mmio(address);
        self.fd
            .register_ioevent(event, &address, value)
            .map_err(kvm("tie a doorbell to an event"))
    }

    pub(crate) fn cpuid_for(&self, id: u32, count: u32) -> Result<CpuId, HypervisorError> {
        crate::cpuid::for_vcpu(&self.cpuid, id, count, self.tsc_deadline)
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn take(&mut self, address: u64) -> Result<u32, HypervisorError> {
        if self.next >= self.limit {
            return Err(HypervisorError::NoSlot { address });
        }
        let slot = self.next;
        self.next += 1;
        Ok(slot)
    }
}
