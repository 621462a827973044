//! Instructions that work on general registers, segments and flags.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use kvm_bindings::kvm_segment;

use super::{Cpu, Exception, Halt};

/// Flags (Intel SDM vol. 1, 3.4.3).
pub(super) const AC: u64 = 1 << 18;
const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;

const CR4_FSGSBASE: u64 = 1 << 16;
const MSR_STAR: u32 = 0xc000_0081;

impl Cpu<'_> {
    /// The value of a general register, zero-extended from its size.
    pub(super) fn register(&self, register: Register) -> u64 {
        let full = register.full_register();
        let value = match full {
            Register::RIP => self.general.rip,
            _ => self.slot(full).map_or(0, |slot| slot.0),
        };
        match register.size() {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => value & 0xffff,
            _ => value & 0xff,
        }
    }

    /// Writes a general register as instructions do: 32 bits clear the upper half, 16 leave the rest.
    fn set_register(&mut self, register: Register, value: u64) {
        let full = register.full_register();
        let Some((old, write)) = self.slot(full) else {
            return;
        };
        let new = match register.size() {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => old & !0xffff | value & 0xffff,
            _ => old & !0xff | value & 0xff,
        };
        write(&mut self.general, new);
    }

    #[expect(clippy::type_complexity, reason = "a value and where it is kept")]
    fn slot(&self, full: Register) -> Option<(u64, fn(&mut kvm_bindings::kvm_regs, u64))> {
        macro_rules! slots {
            ($($register:ident $field:ident),*) => {
                match full {
                    $(Register::$register => Some((self.general.$field, |regs, value| regs.$field = value)),)*
                    _ => None,
                }
            };
        }
        slots!(
            RAX rax, RBX rbx, RCX rcx, RDX rdx, RSI rsi, RDI rdi, RSP rsp, RBP rbp, R8 r8, R9 r9,
            R10 r10, R11 r11, R12 r12, R13 r13, R14 r14, R15 r15
        )
    }

    fn set_flags(&mut self, mask: u64, value: u64) {
        self.general.rflags = self.general.rflags & !mask | value & mask;
    }

    pub(super) fn popcnt(&mut self, instruction: &Instruction) -> Result<(), Halt> {
        let target = instruction.op0_register();
        let source = if instruction.op1_kind() == OpKind::Register {
            self.register(instruction.op1_register())
        } else {
            let mut bytes = [0; 8];
            let size = target.size().min(8);
            let address = self.address(instruction)?;
            self.read(address, bytes.get_mut(..size).unwrap_or_default())?;
            u64::from_le_bytes(bytes)
        };
        self.set_register(target, source.count_ones().into());
        let zero = if source == 0 { ZF } else { 0 };
        self.set_flags(CF | PF | AF | ZF | SF | OF, zero);
        Ok(())
    }

    /// Atomic towards the other processors: it is done by this one's own instruction.
    pub(super) fn cmpxchg16b(&mut self, instruction: &Instruction) -> Result<(), Halt> {
        let address = self.address(instruction)?;
        if address & 15 != 0 {
            return Err(Exception::PROTECTION.into());
        }
        let host = self.host_address(address)?;
        let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let old = pair(self.general.rdx, self.general.rax);
        let new = pair(self.general.rcx, self.general.rbx);
        let found = compare_exchange(host, old, new);
        if found == old {
            self.set_flags(ZF, ZF);
        } else {
            self.general.rax = found as u64;
            self.general.rdx = (found >> 64) as u64;
            self.set_flags(ZF, 0);
        }
        Ok(())
    }

    /// RDFSBASE and its three sisters.
    pub(super) fn segment_base(&mut self, instruction: &Instruction) -> Result<(), Halt> {
        if self.system.cr4 & CR4_FSGSBASE == 0 {
            return Err(Exception::UNDEFINED.into());
        }
        let register = instruction.op0_register();
        let value = self.register(register);
        let canonical = {
            let sign = value.cast_signed() >> 47;
            sign == 0 || sign == -1
        };
        match instruction.mnemonic() {
            Mnemonic::Rdfsbase => self.set_register(register, self.system.fs.base),
            Mnemonic::Rdgsbase => self.set_register(register, self.system.gs.base),
            _ if !canonical => return Err(Exception::PROTECTION.into()),
            Mnemonic::Wrfsbase => self.system.fs.base = value,
            _ => self.system.gs.base = value,
        }
        Ok(())
    }

    /// To user mode (Intel SDM vol. 2, SYSRET): 64-bit, or compatibility mode.
    pub(super) fn sysret(&mut self, long: bool) -> Result<(), Halt> {
        let selectors = self.backing.msr(MSR_STAR)? >> 48;
        let selector = |offset: u64| (selectors.wrapping_add(offset) as u16) | 3;
        let code = kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: selector(if long { 16 } else { 0 }),
            type_: 11,
            present: 1,
            dpl: 3,
            db: (!long).into(),
            s: 1,
            l: long.into(),
            g: 1,
            ..kvm_segment::default()
        };
        self.system.cs = code;
        self.system.ss = kvm_segment {
            selector: selector(8),
            type_: 3,
            db: 1,
            l: 0,
            ..code
        };
        let target = self.general.rcx;
        self.general.rip = if long { target } else { target & 0xffff_ffff };
        // RF, VM and the reserved bits cannot be returned to.
        self.general.rflags = self.general.r11 & 0x003c_7fd7 | 2;
        Ok(())
    }

    /// Sets ZF if the segment can be written. (Kernels use it for what it does to buffers besides.)
    pub(super) fn verw(&mut self, instruction: &Instruction) -> Result<(), Halt> {
        let selector = if instruction.op0_kind() == OpKind::Register {
            self.register(instruction.op0_register()) as u16
        } else {
            let mut bytes = [0; 2];
            self.read(self.address(instruction)?, &mut bytes)?;
            u16::from_le_bytes(bytes)
        };
        let writable = self.descriptor(selector)?.is_some_and(|descriptor| {
            const PRESENT: u64 = 1 << 47;
            const NOT_SYSTEM: u64 = 1 << 44;
            const CODE: u64 = 1 << 43;
            const WRITABLE: u64 = 1 << 41;
            let wanted = PRESENT | NOT_SYSTEM | WRITABLE;
            let level = descriptor >> 45 & 3;
            descriptor & (wanted | CODE) == wanted && level >= u64::from(selector & 3)
        });
        self.set_flags(ZF, if writable { ZF } else { 0 });
        Ok(())
    }

    /// A descriptor of the global table; `None`: none there.
    fn descriptor(&self, selector: u16) -> Result<Option<u64>, Halt> {
        let (index, local) = (u64::from(selector & !7), selector & 4 != 0);
        if index == 0 || local || index + 7 > u64::from(self.system.gdt.limit) {
            return Ok(None);
        }
        let mut bytes = [0; 8];
        self.read(self.system.gdt.base.wrapping_add(index), &mut bytes)?;
        Ok(Some(u64::from_le_bytes(bytes)))
    }
}

/// LOCK CMPXCHG16B at a host address that [`Cpu::host_address`] gave and that is a multiple of 16;
/// returns what was there. By hand: Rust's intrinsic wants a library call that does not exist here.
fn compare_exchange(host: *mut u8, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: 16 bytes of guest memory, mapped, writable and aligned. Guest memory has no Rust
    // references; racing processors are what the instruction is for. RBX, which the compiler keeps to
    // itself, is put back.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            inout("rsi") new as u64 => _,
            in("rdi") host,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        )
    };
    u128::from(high) << 64 | u128::from(low)
}
