//! A processor made of plain numbers: for this module's tests, and of a fuzzer's making for its fuzz target
//! (feature `testing`).

use isopod_memory::{Bytes, GuestAddress, GuestMemory};
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_xsave};

use super::{Backing, Cpu, Halt};
use crate::HypervisorError;

/// Guest memory in bytes.
pub const MEMORY: u64 = 1 << 20;
/// Where the code is.
pub const CODE: u64 = 0x1000;
/// Where the page tables are: one of each level, of which the last maps the first 2 MiB onto themselves.
pub const TABLES: u64 = 0x10000;

/// All that the guest has a say in.
#[derive(Clone, Debug)]
pub struct Registers {
    /// RAX to R15, in KVM's order.
    pub general: [u64; 16],
    /// Flags.
    pub flags: u64,
    /// CR0, CR3, CR4 as differences from those of a kernel that pages.
    pub control: [u64; 3],
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// XCR0, which on hardware has only bits that exist.
    pub enabled: u64,
    /// `MSR_STAR` and every other.
    pub msr: u64,
}

/// How the run of some instructions ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All were completed.
    Completed,
    /// One faulted.
    Faulted,
    /// One is not emulated.
    Unknown,
}

/// A processor and its memory.
pub struct Guest {
    memory: GuestMemory,
    general: kvm_regs,
    system: kvm_sregs,
    backing: Numbers,
}

/// What KVM would be asked for, as plain numbers.
pub(super) struct Numbers {
    pub extended: kvm_xsave,
    pub enabled: u64,
    /// Every MSR.
    pub msr: u64,
}

impl Backing for Numbers {
    fn extended(&mut self) -> Result<kvm_xsave, HypervisorError> {
        Ok(kvm_xsave {
            region: self.extended.region,
            ..kvm_xsave::default()
        })
    }

    fn set_extended(&mut self, state: &kvm_xsave) -> Result<(), HypervisorError> {
        self.extended.region = state.region;
        Ok(())
    }

    fn enabled_components(&mut self) -> Result<u64, HypervisorError> {
        Ok(self.enabled)
    }

    fn msr(&mut self, _index: u32) -> Result<u64, HypervisorError> {
        Ok(self.msr)
    }
}

impl Guest {
    /// In 64-bit supervisor mode, about to execute what is at [`CODE`]. `None` if the host has no memory.
    #[must_use]
    pub fn new(registers: &Registers) -> Option<Self> {
        let memory = isopod_memory::anonymous(&[(0, MEMORY as usize)]).ok()?;
        let [
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = registers.general;
        let general = kvm_regs {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip: CODE,
            rflags: registers.flags,
        };
        let [cr0, cr3, cr4] = registers.control;
        let mut system = kvm_sregs {
            cr0: (1 << 31 | 1 << 16 | 1) ^ cr0,
            cr3: TABLES ^ cr3,
            cr4: (1 << 18 | 1 << 16 | 1 << 5) ^ cr4,
            efer: 1 << 10 | 1 << 8,
            ..kvm_sregs::default()
        };
        system.cs.l = 1;
        [system.fs.base, system.gs.base] = registers.bases;
        let guest = Self {
            memory,
            general,
            system,
            backing: Numbers {
                extended: kvm_xsave::default(),
                enabled: registers.enabled,
                msr: registers.msr,
            },
        };
        for level in 0..3 {
            let table = TABLES + level * 4096;
            guest.put(table, (table + 4096) | 3);
        }
        for page in 0..512 {
            guest.put(TABLES + 3 * 4096 + 8 * page, page << 12 | 3);
        }
        Some(guest)
    }

    /// Puts a number into memory, if there is memory.
    pub fn put(&self, address: u64, value: u64) {
        let _ = self.memory.write_obj(value, GuestAddress(address));
    }

    /// Puts bytes into memory, as far as there is memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(address));
    }

    /// Words of the extended state: legacy area, XSAVE header, components.
    pub fn set_extended(&mut self, words: &[u32]) {
        for (to, from) in self.backing.extended.region.iter_mut().zip(words) {
            *to = *from;
        }
    }

    /// Emulates at most `count` instructions, as if KVM had handed back each.
    ///
    /// # Panics
    /// When one that faulted has changed a general register, which is what a fault promises not to do.
    pub fn run(&mut self, count: usize) -> Outcome {
        for _ in 0..count {
            let before = self.general;
            let mut cpu = Cpu {
                general: self.general,
                system: self.system,
                memory: &self.memory,
                backing: &mut self.backing,
            };
            let outcome = cpu.step();
            (self.general, self.system) = (cpu.general, cpu.system);
            match outcome {
                Ok(_) => {}
                Err(Halt::Fault(exception)) => {
                    assert_eq!(self.general, before, "{exception:?} had an effect");
                    return Outcome::Faulted;
                }
                Err(Halt::Error(_)) => return Outcome::Unknown,
            }
        }
        Outcome::Completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        Registers {
            general: [0x8000; 16],
            flags: 2,
            control: [0; 3],
            bases: [0; 2],
            enabled: 7,
            msr: 0,
        }
    }

    #[test]
    fn a_guest_runs_its_code() {
        let mut guest = Guest::new(&registers()).unwrap();
        // popcnt rax, rcx; clac; fninit
        guest.write(
            CODE,
            &[0xf3, 0x48, 0x0f, 0xb8, 0xc1, 0x0f, 0x01, 0xca, 0xdb, 0xe3],
        );
        assert_eq!(guest.run(3), Outcome::Completed);
        assert_eq!(guest.general.rax, 1);
        assert_eq!(guest.run(1), Outcome::Unknown);
    }

    #[test]
    fn a_guest_without_tables_faults() {
        let mut guest = Guest::new(&registers()).unwrap();
        // xsave [rcx], whose page is gone.
        guest.write(CODE, &[0x0f, 0xae, 0x21]);
        guest.put(TABLES + 3 * 4096 + 8 * 8, 0);
        assert_eq!(guest.run(1), Outcome::Faulted);
    }
}
