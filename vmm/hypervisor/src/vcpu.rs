//! One processor: how it begins, and one step of its life.

use std::sync::{Arc, Mutex};

use isopod_memory::GuestMemory;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::{
    Entry, HypervisorError,
    emulate::{self, EmulateError, Emulated},
    error::kvm,
    kick::Kick,
    msrs,
    vm::Slots,
};

/// The machine around a processor, as its exits see it. Called from every vCPU's thread at once; what a
/// guest asks of it is never an error of the monitor.
pub trait Bus: Send + Sync {
    /// `in`: fills `data`.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// `out`.
    fn port_write(&self, port: u16, data: &[u8]) -> Flow;
    /// A read where there is no memory: fills `data`.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// A write where there is no memory.
    fn mmio_write(&self, address: u64, data: &[u8]);
}

/// Whether a guest goes on after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Continue,
    /// It asked for a reset: the machine ends.
    Reset,
}

/// What became of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The guest did something that was answered.
    Ran,
    /// A signal, or the vCPU is to be looked after.
    Interrupted,
    /// A triple fault, or the guest asked for a reset.
    Reset,
}

/// Why a processor cannot go on. A guest can cause some of these; they end its machine.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// `KVM_RUN` failed.
    #[error("vCPU {id}: KVM cannot run: {source}")]
    Run {
        /// Which.
        id: u32,
        /// Why.
        source: std::io::Error,
    },
    /// The hardware refused to enter the guest.
    #[error("vCPU {id}: the processor refuses to enter the guest (reason {reason:#x})")]
    FailEntry {
        /// Which.
        id: u32,
        /// The processor's.
        reason: u64,
    },
    /// KVM met something that it has no words for.
    #[error("vCPU {id}: KVM's internal error {suberror}")]
    Internal {
        /// Which.
        id: u32,
        /// KVM's.
        suberror: u32,
    },
    /// An instruction that neither KVM nor this monitor knows.
    #[error("vCPU {id}: {source}")]
    Emulate {
        /// Which.
        id: u32,
        /// What it was.
        source: EmulateError,
    },
    /// An exit that was never asked for.
    #[error("vCPU {id}: unexpected exit {exit}")]
    Unexpected {
        /// Which.
        id: u32,
        /// KVM's.
        exit: String,
    },
}

/// What a processor did, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuCounters {
    /// Port accesses.
    pub ports: u64,
    /// Accesses to devices' registers.
    pub mmio: u64,
    /// Instructions completed for KVM's emulator.
    pub emulated: u64,
    /// Returns of `KVM_RUN` without a reason of the guest's.
    pub interrupted: u64,
}

/// How often an instruction that is not known here is left to KVM once more.
///
/// A kernel changes its own code while other processors run it: first a breakpoint, then the rest, then
/// the first byte. KVM may have met the breakpoint, which it cannot do, and this process may read what
/// stands there a moment later, which KVM can. Whoever never gets past it is at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Patience {
    at: u64,
    times: u32,
}

impl Patience {
    const MOST: u32 = 16;

    fn lasts(&mut self, rip: u64) -> bool {
        if self.at != rip {
            *self = Self { at: rip, times: 0 };
        }
        self.times += 1;
        self.times <= Self::MOST
    }
}

/// One virtual processor. It runs on the thread that calls [`Vcpu::step`].
pub struct Vcpu {
    fd: VcpuFd,
    id: u32,
    memory: GuestMemory,
    kick: Kick,
    counters: VcpuCounters,
    patience: Patience,
    /// What the guest sees as memory stays mapped as long as a processor could touch it.
    _slots: Arc<Mutex<Slots>>,
}

impl Vcpu {
    pub(crate) fn new(
        fd: VcpuFd,
        id: u32,
        memory: GuestMemory,
        slots: Arc<Mutex<Slots>>,
    ) -> Result<Self, HypervisorError> {
        let kick = Kick::new(&fd)?;
        msrs::initialise(&fd)?;
        wire_local_interrupts(&fd)?;
        Ok(Self {
            fd,
            id,
            memory,
            kick,
            counters: VcpuCounters::default(),
            patience: Patience::default(),
            _slots: slots,
        })
    }

    /// Its number, which is its APIC id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it did.
    #[must_use]
    pub fn counters(&self) -> VcpuCounters {
        self.counters
    }

    /// The guest's memory.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub(crate) fn kick(&self) -> Kick {
        self.kick.clone()
    }

    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Makes this the first processor, about to run a kernel. The others wait for its INIT and SIPI.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn enter_at(&self, entry: &Entry) -> Result<(), HypervisorError> {
        let mut system = self.fd.get_sregs().map_err(kvm("read registers"))?;
        entry.prepare(&mut system);
        self.fd.set_sregs(&system).map_err(kvm("set registers"))?;
        let general = entry.registers();
        self.fd.set_regs(&general).map_err(kvm("set registers"))
    }

    /// Enters the guest until it does something that KVM does not answer itself.
    pub(crate) fn step(&mut self, bus: &dyn Bus) -> Result<Step, VcpuError> {
        let id = self.id;
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) => {
                return match error.errno() {
                    // EAGAIN: the end of a processor's wait for its SIPI.
                    libc::EINTR | libc::EAGAIN => {
                        self.counters.interrupted += 1;
                        Ok(Step::Interrupted)
                    }
                    _ => Err(VcpuError::Run {
                        id,
                        source: error.into(),
                    }),
                };
            }
        };
        match exit {
            VcpuExit::IoIn(port, data) => {
                self.counters.ports += 1;
                bus.port_read(port, data);
            }
            VcpuExit::IoOut(port, data) => {
                self.counters.ports += 1;
                if bus.port_write(port, data) == Flow::Reset {
                    return Ok(Step::Reset);
                }
            }
            VcpuExit::MmioRead(address, data) => {
                self.counters.mmio += 1;
                bus.mmio_read(address, data);
            }
            VcpuExit::MmioWrite(address, data) => {
                self.counters.mmio += 1;
                bus.mmio_write(address, data);
            }
            VcpuExit::Shutdown => return Ok(Step::Reset),
            VcpuExit::Intr | VcpuExit::IrqWindowOpen => return Ok(Step::Interrupted),
            VcpuExit::FailEntry(reason, _) => return Err(VcpuError::FailEntry { id, reason }),
            VcpuExit::InternalError => return self.complete(),
            other => {
                return Err(VcpuError::Unexpected {
                    id,
                    exit: format!("{other:?}"),
                });
            }
        }
        Ok(Step::Ran)
    }

    /// Completes the instruction that KVM gave up.
    fn complete(&mut self) -> Result<Step, VcpuError> {
        let id = self.id;
        let run = self.fd.get_kvm_run();
        // SAFETY: after KVM_EXIT_INTERNAL_ERROR this is the variant that KVM wrote; it is plain data.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        if suberror != kvm_bindings::KVM_INTERNAL_ERROR_EMULATION {
            return Err(VcpuError::Internal { id, suberror });
        }
        self.counters.emulated += 1;
        match emulate::complete(&self.fd, &self.memory) {
            Ok(Emulated::Completed | Emulated::Faulted) => {
                self.patience = Patience::default();
                Ok(Step::Ran)
            }
            Err(EmulateError::Unknown { rip, .. } | EmulateError::Fetch { rip })
                if self.patience.lasts(rip) =>
            {
                Ok(Step::Ran)
            }
            Err(source) => Err(VcpuError::Emulate { id, source }),
        }
    }
}

/// LINT0 takes the PIC's interrupts, LINT1 is the NMI, as firmware leaves them (Intel MultiProcessor
/// Specification 1.4, 3.6.2.2): the guest's kernel relies on it until it has its I/O APIC.
fn wire_local_interrupts(vcpu: &VcpuFd) -> Result<(), HypervisorError> {
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    const EXTINT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    let mut apic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    for (register, delivery) in [(LINT0, EXTINT), (LINT1, NMI)] {
        if let Some(bytes) = apic.regs.get_mut(register..register + 4) {
            for (byte, new) in bytes.iter_mut().zip(delivery.to_le_bytes()) {
                *byte = new.cast_signed();
            }
        }
    }
    vcpu.set_lapic(&apic).map_err(kvm("set the local APIC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_has_an_end_and_begins_anew_elsewhere() {
        let mut patience = Patience::default();
        for _ in 0..Patience::MOST {
            assert!(patience.lasts(0x1000));
        }
        assert!(!patience.lasts(0x1000));
        assert!(patience.lasts(0x2000));
        assert!(patience.lasts(0x1000));
    }
}
