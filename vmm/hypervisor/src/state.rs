//! What of a VM's kernel side is saved and restored: plain, versioned data.
//!
//! A processor is saved between two instructions, with nothing half done (see `runner`). The order of
//! restoring matters and is written here once.

use kvm_bindings::{
    KVM_CLOCK_TSC_STABLE, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs,
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use serde::{Deserialize, Serialize};

use crate::{HypervisorError, Vcpu, Vm, error::kvm, msrs};

/// Of both records below. Another number is refused.
pub const VERSION: u32 = 1;

/// What all processors share.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    version: u32,
    /// What the first processor was told of itself; see [`Leaf`].
    processor: Vec<Leaf>,
    clock: kvm_clock_data,
    pit: kvm_pit_state2,
    /// Both PICs and the I/O APIC.
    controllers: Vec<kvm_irqchip>,
}

/// Leaf and subleaf of CPUID, and the four registers. A guest looks once and counts on it for good, so
/// that a host which answers otherwise cannot take it on.
pub type Leaf = (u32, u32, [u32; 4]);

/// One processor.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    version: u32,
    id: u32,
    tsc_khz: u32,
    general: kvm_regs,
    system: kvm_sregs,
    extended: kvm_xsave,
    control: kvm_xcrs,
    debug: kvm_debugregs,
    apic: kvm_lapic_state,
    events: kvm_vcpu_events,
    running: kvm_mp_state,
    msrs: Vec<(u32, u64)>,
}

/// Model-specific registers that belong to a processor's state; what a host does not have is left out.
/// Time stamp and deadline come last: the deadline is told in time stamps, and the local APIC must
/// be in its mode before.
const SAVED: &[u32] = &[
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SYSCALL_MASK
    0xc000_0102, // KERNEL_GS_BASE
    0xc000_0103, // TSC_AUX
    0x1a0,       // IA32_MISC_ENABLE
    0x277,       // IA32_PAT
    0x2ff,       // IA32_MTRR_DEF_TYPE
    0x48,        // IA32_SPEC_CTRL
    0x3b,        // IA32_TSC_ADJUST
    0x4b56_4d00, // MSR_KVM_WALL_CLOCK_NEW
    0x4b56_4d01, // MSR_KVM_SYSTEM_TIME_NEW
    0x4b56_4d02, // MSR_KVM_ASYNC_PF_EN
    0x4b56_4d03, // MSR_KVM_STEAL_TIME
    0x4b56_4d04, // MSR_KVM_EOI_EN
    0x4b56_4d05, // MSR_KVM_POLL_CONTROL
    0x4b56_4d06, // MSR_KVM_ASYNC_PF_INT
    0x10,        // IA32_TIME_STAMP_COUNTER
    0x6e0,       // IA32_TSC_DEADLINE
];

/// Interrupt controllers, in the order of the record.
const CONTROLLERS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

impl Vm {
    /// Reads the shared part. Processors must be paused.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn save(&self) -> Result<VmState, HypervisorError> {
        let read = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            self.fd()
                .get_irqchip(&mut chip)
                .map_err(kvm("read an interrupt controller"))
                .map(|()| chip)
        };
        Ok(VmState {
            version: VERSION,
            clock: self.fd().get_clock().map_err(kvm("read the clock"))?,
            pit: self.fd().get_pit2().map_err(kvm("read the timer"))?,
            processor: self.leaves()?,
            controllers: CONTROLLERS
                .into_iter()
                .map(read)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Writes the shared part, before the processors'.
    ///
    /// # Errors
    /// Another version, another host's processor, or KVM refuses.
    pub fn restore(&self, state: &VmState) -> Result<(), HypervisorError> {
        check_version(state.version)?;
        check_processor(&state.processor, &self.leaves()?)?;
        let chips = state.controllers.iter().map(|chip| chip.chip_id);
        if !chips.eq(CONTROLLERS) {
            return Err(HypervisorError::State(
                "interrupt controllers that no machine has".to_owned(),
            ));
        }
        for chip in &state.controllers {
            self.fd()
                .set_irqchip(chip)
                .map_err(kvm("set an interrupt controller"))?;
        }
        self.fd()
            .set_pit2(&state.pit)
            .map_err(kvm("set the timer"))?;
        let clock = kvm_clock_data {
            clock: state.clock.clock,
            // The guest's clock goes on from where it stood.
            flags: state.clock.flags
                & !KVM_CLOCK_TSC_STABLE
                & !kvm_bindings::KVM_CLOCK_REALTIME
                & !kvm_bindings::KVM_CLOCK_HOST_TSC,
            ..kvm_clock_data::default()
        };
        self.fd().set_clock(&clock).map_err(kvm("set the clock"))
    }

    /// What a first and only processor is told here.
    fn leaves(&self) -> Result<Vec<Leaf>, HypervisorError> {
        let table = self.cpuid_for(0, 1)?;
        let leaf = |entry: &kvm_bindings::kvm_cpuid_entry2| {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            (entry.function, entry.index, registers)
        };
        Ok(table.as_slice().iter().map(leaf).collect())
    }
}

fn check_processor(saved: &[Leaf], here: &[Leaf]) -> Result<(), HypervisorError> {
    let differs = |leaf: &&Leaf| !here.contains(leaf);
    let lacks = |leaf: &&Leaf| !saved.contains(leaf);
    let first = saved.iter().find(differs);
    match first.or_else(|| here.iter().find(lacks)) {
        None => Ok(()),
        Some((function, index, _)) => Err(HypervisorError::State(format!(
            "this host's processor differs in CPUID leaf {function:#x}, {index}"
        ))),
    }
}

impl Vcpu {
    /// Reads a processor that rests.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn save(&self) -> Result<VcpuState, HypervisorError> {
        let fd = self.fd();
        // First: it makes KVM bring the others up to date (interrupts that are on their way).
        let running = fd.get_mp_state().map_err(kvm("read a vCPU's state"))?;
        Ok(VcpuState {
            version: VERSION,
            id: self.id(),
            tsc_khz: fd.get_tsc_khz().map_err(kvm("tell the TSC's frequency"))?,
            general: fd.get_regs().map_err(kvm("read registers"))?,
            system: fd.get_sregs().map_err(kvm("read registers"))?,
            extended: fd.get_xsave().map_err(kvm("read extended state"))?,
            control: fd.get_xcrs().map_err(kvm("read XCR0"))?,
            debug: fd.get_debug_regs().map_err(kvm("read debug registers"))?,
            apic: fd.get_lapic().map_err(kvm("read the local APIC"))?,
            msrs: saved_msrs(fd)?,
            // Last: reading the others may settle what is pending.
            events: fd.get_vcpu_events().map_err(kvm("read events"))?,
            running,
        })
    }

    /// Writes a processor that has not run.
    ///
    /// # Errors
    /// Another version or processor, or KVM refuses.
    pub fn restore(&self, state: &VcpuState) -> Result<(), HypervisorError> {
        check_version(state.version)?;
        if state.id != self.id() {
            return Err(HypervisorError::State(format!(
                "vCPU {} gets the state of {}",
                self.id(),
                state.id
            )));
        }
        let unknown = |(index, _): &&(u32, u64)| !SAVED.contains(index);
        if let Some((index, _)) = state.msrs.iter().find(unknown) {
            return Err(HypervisorError::State(format!(
                "MSR {index:#x} is none that is saved"
            )));
        }
        let fd = self.fd();
        let here = fd.get_tsc_khz().map_err(kvm("tell the TSC's frequency"))?;
        if here != state.tsc_khz {
            // Scaling where the host can; a guest that counts wrongly where it cannot is refused.
            fd.set_tsc_khz(state.tsc_khz)
                .map_err(kvm("scale the TSC"))?;
        }
        fd.set_mp_state(state.running)
            .map_err(kvm("set a vCPU's state"))?;
        fd.set_sregs(&state.system).map_err(kvm("set registers"))?;
        fd.set_regs(&state.general).map_err(kvm("set registers"))?;
        fd.set_xcrs(&state.control).map_err(kvm("set XCR0"))?;
        // SAFETY: KVM reads 4096 bytes, which the structure has; no dynamic feature is asked for.
        unsafe { fd.set_xsave(&state.extended) }.map_err(kvm("set extended state"))?;
        fd.set_debug_regs(&state.debug)
            .map_err(kvm("set debug registers"))?;
        fd.set_lapic(&state.apic)
            .map_err(kvm("set the local APIC"))?;
        let entries: Vec<_> = state
            .msrs
            .iter()
            .map(|(index, data)| kvm_msr_entry {
                index: *index,
                data: *data,
                ..kvm_msr_entry::default()
            })
            .collect();
        msrs::write(fd, &entries)?;
        fd.set_vcpu_events(&state.events).map_err(kvm("set events"))
    }

    /// Tells a kernel whose clock stood still that it did, so that its watchdogs do not bark.
    pub fn clock_stood_still(&self) {
        // A guest that does not use the paravirtual clock has nothing to be told: EINVAL.
        let _ = self.fd().kvmclock_ctrl();
    }
}

fn check_version(found: u32) -> Result<(), HypervisorError> {
    if found == VERSION {
        return Ok(());
    }
    Err(HypervisorError::State(format!(
        "version {found} was written by another isopod; this one knows {VERSION}"
    )))
}

/// One call per register: KVM stops at the first that the host does not have.
fn saved_msrs(vcpu: &kvm_ioctls::VcpuFd) -> Result<Vec<(u32, u64)>, HypervisorError> {
    let mut saved = Vec::with_capacity(SAVED.len());
    for index in SAVED {
        let entry = kvm_msr_entry {
            index: *index,
            ..kvm_msr_entry::default()
        };
        let mut one =
            Msrs::from_entries(&[entry]).map_err(|_| HypervisorError::Msr { index: *index })?;
        if vcpu.get_msrs(&mut one).map_err(kvm("read an MSR"))? == 1 {
            saved.extend(one.as_slice().iter().map(|entry| (entry.index, entry.data)));
        }
    }
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_processor_is_told_by_its_first_leaf_that_differs() {
        let here: [Leaf; 2] = [(0, 0, [13, 1, 2, 3]), (7, 1, [0, 5, 0, 0])];
        check_processor(&here, &here).unwrap();
        let mut other = here;
        other[1].2[1] = 4;
        let error = check_processor(&other, &here).unwrap_err().to_string();
        assert!(error.contains("leaf 0x7, 1"), "{error}");
        let error = check_processor(&here[..1], &here).unwrap_err().to_string();
        assert!(error.contains("leaf 0x7, 1"), "{error}");
    }
}
