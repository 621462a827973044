//! Completes the instruction that KVM's emulator handed back.
//!
//! Where the host's processor runs a guest's kernel, KVM emulates little more than accesses to devices.
//! There are hosts, though, whose KVM interprets all of supervisor mode, with the same emulator, and
//! `KVM_RUN` ends with `KVM_INTERNAL_ERROR_EMULATION` at each instruction that it never learned:
//! saving vector registers, for one, which a kernel does at every switch of tasks.
//!
//! ```text
//! KVM's registers ──> Cpu ──decode──> execute ──┬─ completed ──> registers back, RIP behind it
//!                      │  reads, writes         ├─ the guest's fault ──> #PF, #GP, ... in its table
//!                      └──(walk: the guest's    └─ unknown ──> the machine ends, the instruction is told
//!                          own page tables)
//! ```
//!
//! Only 64-bit supervisor mode is known here: user mode is never interpreted. What is written for the
//! guest goes through its own page tables with the checks that the processor makes, because a kernel
//! relies on faults (copy on write under a signal frame).
//!
//! Sources: Intel SDM vol. 1, 13 (XSAVE), vol. 2 (instructions), vol. 3, 4 (paging), 6 (exceptions).

mod access;
mod general;
mod outcome;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod walk;
mod x87;
mod xsave;

#[cfg(test)]
mod tests;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use isopod_memory::GuestMemory;
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;

pub(crate) use access::Access;
pub use outcome::EmulateError;
pub(crate) use outcome::{Exception, Halt};

use crate::{HypervisorError, error::kvm, msrs};

/// The longest instruction there is (Intel SDM vol. 2, 2.3.11).
const LONGEST: usize = 15;

/// What became of the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emulated {
    /// It did what it does.
    Completed,
    /// The guest gets an exception.
    Faulted,
}

/// The processor's state that is too large or too rare to be fetched for every instruction.
pub(crate) trait Backing {
    /// The extended state in the standard format.
    fn extended(&mut self) -> Result<kvm_xsave, HypervisorError>;
    /// Sets it.
    fn set_extended(&mut self, state: &kvm_xsave) -> Result<(), HypervisorError>;
    /// Extended control register 0: the state components that the guest has enabled.
    fn enabled_components(&mut self) -> Result<u64, HypervisorError>;
    /// A model-specific register.
    fn msr(&mut self, index: u32) -> Result<u64, HypervisorError>;
}

/// A processor between two instructions.
pub(crate) struct Cpu<'a> {
    pub general: kvm_regs,
    pub system: kvm_sregs,
    pub memory: &'a GuestMemory,
    pub backing: &'a mut dyn Backing,
}

/// Completes the instruction at which KVM stopped.
pub(crate) fn complete(vcpu: &VcpuFd, memory: &GuestMemory) -> Result<Emulated, EmulateError> {
    let mut backing = KvmBacking(vcpu);
    let mut cpu = Cpu {
        general: vcpu.get_regs().map_err(kvm("read registers"))?,
        system: vcpu.get_sregs().map_err(kvm("read registers"))?,
        memory,
        backing: &mut backing,
    };
    let before = cpu.system;
    let outcome = cpu.step();
    let exception = match outcome {
        Ok(exception) => exception,
        Err(Halt::Fault(exception)) => Some(exception),
        Err(Halt::Error(error)) => return Err(error),
    };
    if let Some(address) = exception.and_then(|exception| exception.address) {
        cpu.system.cr2 = address;
    }
    let (general, system) = (cpu.general, cpu.system);
    if system != before {
        vcpu.set_sregs(&system).map_err(kvm("set registers"))?;
    }
    vcpu.set_regs(&general).map_err(kvm("set registers"))?;
    let Some(exception) = exception else {
        return Ok(Emulated::Completed);
    };
    let mut events = vcpu.get_vcpu_events().map_err(kvm("read events"))?;
    events.exception.injected = 1;
    events.exception.pending = 0;
    events.exception.nr = exception.vector;
    events.exception.has_error_code = exception.error_code.is_some().into();
    events.exception.error_code = exception.error_code.unwrap_or(0);
    vcpu.set_vcpu_events(&events)
        .map_err(kvm("inject an exception"))?;
    Ok(Emulated::Faulted)
}

struct KvmBacking<'a>(&'a VcpuFd);

impl Backing for KvmBacking<'_> {
    fn extended(&mut self) -> Result<kvm_xsave, HypervisorError> {
        self.0.get_xsave().map_err(kvm("read extended state"))
    }

    fn set_extended(&mut self, state: &kvm_xsave) -> Result<(), HypervisorError> {
        // SAFETY: KVM reads 4096 bytes, which the structure has, unless the process asked for dynamic
        // features by arch_prctl(2), which this program never does.
        unsafe { self.0.set_xsave(state) }.map_err(kvm("set extended state"))
    }

    fn enabled_components(&mut self) -> Result<u64, HypervisorError> {
        let registers = self.0.get_xcrs().map_err(kvm("read XCR0"))?;
        let first = registers.xcrs.first().filter(|_| registers.nr_xcrs > 0);
        Ok(first.map_or(1, |register| register.value))
    }

    fn msr(&mut self, index: u32) -> Result<u64, HypervisorError> {
        msrs::read(self.0, index)
    }
}

impl Cpu<'_> {
    /// Decodes and executes one instruction. An exception in `Ok` is a trap: the instruction completed
    /// and the exception comes behind it.
    pub fn step(&mut self) -> Result<Option<Exception>, Halt> {
        let rip = self.general.rip;
        const LONG_MODE_ACTIVE: u64 = 1 << 10;
        if self.system.cs.l == 0 || self.system.efer & LONG_MODE_ACTIVE == 0 {
            return Err(Halt::Error(EmulateError::Mode { rip }));
        }
        let mut bytes = [0; LONGEST];
        let fetched = self.fetch(rip, &mut bytes);
        let bytes = bytes.get(..fetched).unwrap_or_default();
        let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err(Halt::Error(if bytes.is_empty() {
                EmulateError::Fetch { rip }
            } else {
                unknown(rip, &instruction, bytes)
            }));
        }
        let trap = match self.execute(&instruction)? {
            Some(outcome) => outcome,
            None => return Err(Halt::Error(unknown(rip, &instruction, bytes))),
        };
        Ok(trap)
    }

    /// Executes; `None`: not known.
    fn execute(&mut self, instruction: &Instruction) -> Result<Option<Option<Exception>>, Halt> {
        use Mnemonic as M;
        let next = instruction.next_ip();
        match instruction.mnemonic() {
            M::Int3 => {
                self.general.rip = next;
                return Ok(Some(Some(Exception::BREAKPOINT)));
            }
            M::Sysretq | M::Sysret => {
                self.sysret(instruction.mnemonic() == M::Sysretq)?;
                return Ok(Some(None));
            }
            M::Popcnt => self.popcnt(instruction)?,
            M::Cmpxchg16b => self.cmpxchg16b(instruction)?,
            M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
                self.segment_base(instruction)?;
            }
            M::Clac => self.general.rflags &= !general::AC,
            M::Stac => self.general.rflags |= general::AC,
            M::Verw => self.verw(instruction)?,
            // Caches are the host's; its processor keeps them coherent.
            M::Clflush | M::Clflushopt | M::Clwb => {}
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => {
                self.xsave(instruction, xsave::Format::Standard)?;
            }
            M::Xsavec | M::Xsavec64 | M::Xsaves | M::Xsaves64 => {
                self.xsave(instruction, xsave::Format::Compacted)?;
            }
            M::Xrstor | M::Xrstor64 => self.xrstor(instruction, false)?,
            M::Xrstors | M::Xrstors64 => self.xrstor(instruction, true)?,
            // No exception of the x87 unit is ever pending in a kernel that clears them.
            M::Wait => {}
            M::Emms => self.emms()?,
            M::Fnclex => self.fnclex()?,
            M::Fninit => self.fninit()?,
            M::Fild => self.fild(instruction)?,
            M::Ldmxcsr => self.ldmxcsr(instruction)?,
            M::Stmxcsr => self.stmxcsr(instruction)?,
            _ => return Ok(None),
        }
        self.general.rip = next;
        Ok(Some(None))
    }
}

fn unknown(rip: u64, instruction: &Instruction, bytes: &[u8]) -> EmulateError {
    EmulateError::Unknown {
        rip,
        text: format!("{:?}", instruction.code()),
        bytes: bytes.to_vec(),
    }
}
