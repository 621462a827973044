//! How the first processor enters a kernel: the state that each boot protocol promises it.
//!
//! | protocol | mode | argument |
//! |---|---|---|
//! | 64-bit (kernel, Documentation/arch/x86/boot.rst) | long mode, paging onto itself | RSI: the zero page |
//! | PVH (Xen, docs/misc/pvh.pandoc) | 32-bit protected mode, no paging | EBX: `hvm_start_info` |

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// Of the code segment, in a table that begins with two null descriptors.
const CODE: u16 = 2 << 3;
/// Of the data segments.
const DATA: u16 = 3 << 3;
/// The reserved bit of RFLAGS alone: no interrupts.
const NO_FLAGS: u64 = 2;
/// PE and ET of CR0.
const PROTECTED: u64 = 1 | 1 << 4;

/// Where the first processor begins, and in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First instruction.
    pub instruction: u64,
    /// Of a table with [`Self::descriptors`].
    pub gdt: u64,
    /// What the protocol promises beyond that.
    pub protocol: Protocol,
}

/// A boot protocol and the addresses that it hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's 64-bit one.
    Linux64 {
        /// Top of a stack of a few hundred bytes.
        stack: u64,
        /// Of the zero page.
        zero_page: u64,
        /// Top level page table.
        page_tables: u64,
    },
    /// PVH. There is no stack.
    Pvh {
        /// Of `hvm_start_info`.
        start_info: u64,
    },
}

impl Entry {
    /// Null, null, code, data: to be written to [`Self::gdt`].
    #[must_use]
    pub fn descriptors(&self) -> [u64; 4] {
        let code = match self.protocol {
            Protocol::Linux64 { .. } => 0x00af_9b00_0000_ffff,
            Protocol::Pvh { .. } => 0x00cf_9b00_0000_ffff,
        };
        [0, 0, code, 0x00cf_9300_0000_ffff]
    }

    /// General registers of a processor that is about to take its first instruction.
    pub(crate) fn registers(&self) -> kvm_regs {
        let fresh = kvm_regs {
            rip: self.instruction,
            rflags: NO_FLAGS,
            ..kvm_regs::default()
        };
        match self.protocol {
            Protocol::Linux64 {
                stack, zero_page, ..
            } => kvm_regs {
                rsp: stack,
                rsi: zero_page,
                ..fresh
            },
            Protocol::Pvh { start_info } => kvm_regs {
                rbx: start_info,
                ..fresh
            },
        }
    }

    /// Puts a processor's system registers, as it has them after a reset, into the promised mode.
    pub(crate) fn prepare(&self, system: &mut kvm_sregs) {
        match self.protocol {
            Protocol::Linux64 { page_tables, .. } => long_mode(system, page_tables),
            Protocol::Pvh { .. } => protected_mode(system),
        }
        system.gdt.base = self.gdt;
        system.gdt.limit = 4 * 8 - 1;
        system.idt.base = 0;
        system.idt.limit = 0;
        // A busy task state: hardware will not enter a guest without one.
        system.tr.type_ = 11;
        system.tr.present = 1;
        system.tr.base = 0;
        system.tr.limit = 0x67;
    }
}

/// 64-bit supervisor mode with the given top level page table.
pub(crate) fn long_mode(system: &mut kvm_sregs, page_tables: u64) {
    segments(system, true);
    system.cr3 = page_tables;
    // PAE.
    system.cr4 = 1 << 5;
    // And PG; LME and LMA.
    system.cr0 = PROTECTED | 1 << 31;
    system.efer = 1 << 8 | 1 << 10;
}

/// 32-bit supervisor mode without paging.
fn protected_mode(system: &mut kvm_sregs) {
    segments(system, false);
    system.cr3 = 0;
    system.cr4 = 0;
    system.cr0 = PROTECTED;
    system.efer = 0;
}

/// Flat ones.
fn segments(system: &mut kvm_sregs, long: bool) {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE,
        // Execute, read, accessed.
        type_: 11,
        present: 1,
        s: 1,
        db: u8::from(!long),
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment {
        selector: DATA,
        // Read, write, accessed.
        type_: 3,
        db: 1,
        l: 0,
        ..code
    };
    system.cs = code;
    for segment in [
        &mut system.ds,
        &mut system.es,
        &mut system.fs,
        &mut system.gs,
        &mut system.ss,
    ] {
        *segment = data;
    }
}
