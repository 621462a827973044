//! Each instruction beside the processor's own: what user space can execute is executed, and the two
//! results are compared. The rest is held against the manual.

use std::arch::asm;

use isopod_memory::{Bytes, GuestAddress, GuestMemory};
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_xsave};
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::emulate::{testing::Numbers, xsave::State};
use areas::{Area, some_state};

mod areas;

/// Code is here, and operands there; page tables map the first 2 MiB onto themselves.
const CODE: u64 = 0x1000;
const DATA: u64 = 0x8000;
const PML4: u64 = 0x10000;
const PDPT: u64 = 0x11000;
const PD: u64 = 0x12000;
const PT: u64 = 0x13000;
const ZF: u64 = 1 << 6;

struct Rig {
    memory: GuestMemory,
    fake: Numbers,
    general: kvm_regs,
    system: kvm_sregs,
}

impl Rig {
    fn new(code: &[u8]) -> Self {
        let memory = isopod_memory::anonymous(&[(0, 1 << 20)]).unwrap();
        memory.write_slice(code, GuestAddress(CODE)).unwrap();
        for (at, entry) in [(PML4, PDPT | 3), (PDPT, PD | 3), (PD, PT | 3)] {
            memory.write_obj(entry, GuestAddress(at)).unwrap();
        }
        for page in 0..256u64 {
            let at = GuestAddress(PT + 8 * page);
            memory.write_obj(page << 12 | 3, at).unwrap();
        }
        let mut system = kvm_sregs {
            cr0: 1 << 31 | 1 << 16 | 1,
            cr3: PML4,
            cr4: 1 << 18 | 1 << 16 | 1 << 5,
            efer: 1 << 10 | 1 << 8,
            ..kvm_sregs::default()
        };
        system.cs.l = 1;
        let general = kvm_regs {
            rip: CODE,
            rflags: 2,
            rbx: DATA,
            ..kvm_regs::default()
        };
        let fake = Numbers {
            extended: kvm_xsave::default(),
            enabled: xcr0(),
            msr: 0,
        };
        Self {
            memory,
            fake,
            general,
            system,
        }
    }

    fn step(&mut self) -> Result<Option<Exception>, Halt> {
        let mut cpu = Cpu {
            general: self.general,
            system: self.system,
            memory: &self.memory,
            backing: &mut self.fake,
        };
        let outcome = cpu.step();
        (self.general, self.system) = (cpu.general, cpu.system);
        outcome
    }

    fn run(&mut self) {
        assert!(matches!(self.step(), Ok(None)));
    }

    fn fault(&mut self) -> Exception {
        match self.step() {
            Err(Halt::Fault(exception)) => exception,
            other => panic!("{other:?}"),
        }
    }

    fn set_entry(&self, address: u64, flags: u64) {
        let at = GuestAddress(PT + 8 * (address >> 12));
        self.memory.write_obj(address & !0xfff | flags, at).unwrap();
    }

    fn entry(&self, address: u64) -> u64 {
        let at = GuestAddress(PT + 8 * (address >> 12));
        self.memory.read_obj(at).unwrap()
    }
}

fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register into two others. Every processor with KVM has XSAVE.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    // Components that the fake's 4096 bytes hold.
    (u64::from(high) << 32 | u64::from(low)) & 0x7
}

proptest! {
    #[test]
    fn popcnt_is_the_processors(value: u64) {
        let (count, flags): (u64, u64);
        // SAFETY: counts bits and reads the flags by way of the stack.
        unsafe {
            asm!("popcnt {0}, {2}", "pushfq", "pop {1}", out(reg) count, out(reg) flags, in(reg) value)
        };
        let mut rig = Rig::new(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1]);
        rig.general.rcx = value;
        rig.general.rflags = 0x8d7;
        rig.run();
        prop_assert_eq!(rig.general.rax, count);
        prop_assert_eq!(rig.general.rflags & 0x8d5, flags & 0x8d5);
        prop_assert_eq!(rig.general.rip, CODE + 5);

        // 32 bits, from memory, relative to GS.
        let mut rig = Rig::new(&[0x65, 0xf3, 0x0f, 0xb8, 0x43, 0x10]);
        rig.code_with_gs_prefix_first();
        rig.system.gs.base = 0x100;
        rig.memory.write_obj(value, GuestAddress(DATA + 0x110)).unwrap();
        rig.general.rax = u64::MAX;
        rig.run();
        prop_assert_eq!(rig.general.rax, u64::from((value as u32).count_ones()));
    }

    #[test]
    fn cmpxchg16b_is_the_processors(old: u128, found: u128, new: u128, equal: bool) {
        let found = if equal { old } else { found };
        let mut rig = Rig::new(&[0xf0, 0x48, 0x0f, 0xc7, 0x4d, 0x00]);
        rig.memory.write_obj(found, GuestAddress(DATA)).unwrap();
        rig.general.rbp = DATA;
        (rig.general.rax, rig.general.rdx) = (old as u64, (old >> 64) as u64);
        (rig.general.rbx, rig.general.rcx) = (new as u64, (new >> 64) as u64);
        rig.run();
        // Intel SDM vol. 2, CMPXCHG16B.
        let held = rig.memory.read_obj::<u128>(GuestAddress(DATA)).unwrap();
        let pair = u128::from(rig.general.rdx) << 64 | u128::from(rig.general.rax);
        if found == old {
            prop_assert_eq!((held, rig.general.rflags & ZF), (new, ZF));
        } else {
            prop_assert_eq!((held, pair, rig.general.rflags & ZF), (found, found, 0));
        }
        rig.general.rip = CODE;
        rig.general.rbp = DATA + 8;
        prop_assert_eq!(rig.fault(), Exception::PROTECTION);
    }
}

impl Rig {
    fn code_with_gs_prefix_first(&self) {
        let code = [0xf3, 0x65, 0x0f, 0xb8, 0x43, 0x10];
        self.memory.write_slice(&code, GuestAddress(CODE)).unwrap();
    }
}

#[rstest]
#[case::absent(2, 0x2)]
#[case::read_only(1, 0x3)]
fn a_write_that_the_page_refuses_faults_and_writes_nothing(#[case] flags: u64, #[case] code: u32) {
    // The area lies across two pages, of which the second refuses.
    let mut rig = Rig::new(&[0x48, 0x0f, 0xae, 0x23]);
    let address = DATA + 0x1000 - 64;
    rig.general.rbx = address;
    rig.general.rax = 7;
    rig.fake.extended = some_state(7, 9).kvm();
    rig.set_entry(DATA + 0x1000, flags);
    if flags & 1 != 0 {
        assert_eq!(rig.fault(), Exception::page_fault(DATA + 0x1000, code));
    } else {
        // It is read before: that is the fault that comes.
        assert_eq!(rig.fault(), Exception::page_fault(DATA + 0x1000, 0));
    }
    let mut bytes = [0; 64];
    rig.memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    assert_eq!(bytes, [0; 64]);
}

#[test]
fn pages_are_marked_as_the_processor_marks_them() {
    let mut rig = Rig::new(&[0x0f, 0xae, 0x1b]);
    rig.run();
    assert_eq!(rig.entry(DATA) & 0x60, 0x60, "accessed and dirty");
    assert_eq!(rig.entry(CODE) & 0x60, 0x20, "accessed");
}

#[test]
fn user_pages_are_kept_out_of_under_smap() {
    let mut rig = Rig::new(&[0x0f, 0xae, 0x1b]);
    for table in [PML4, PDPT, PD] {
        let entry: u64 = rig.memory.read_obj(GuestAddress(table)).unwrap();
        rig.memory
            .write_obj(entry | 4, GuestAddress(table))
            .unwrap();
    }
    rig.set_entry(DATA, 7);
    rig.system.cr4 |= 1 << 21;
    assert_eq!(rig.fault(), Exception::page_fault(DATA, 3));
    rig.general.rflags |= general::AC;
    rig.run();
}

#[test]
fn an_address_with_a_hole_in_it_is_a_protection_fault() {
    let mut rig = Rig::new(&[0x0f, 0xae, 0x1b]);
    rig.general.rbx = 1 << 47;
    assert_eq!(rig.fault(), Exception::PROTECTION);
}

#[test]
fn page_tables_outside_memory_are_an_absent_page() {
    let mut rig = Rig::new(&[0x0f, 0xae, 0x1b]);
    let at = GuestAddress(PDPT + 8);
    rig.memory.write_obj(0x000f_ffff_ffff_f003u64, at).unwrap();
    rig.general.rbx = 1 << 30;
    assert_eq!(rig.fault(), Exception::page_fault(1 << 30, 2));
}

#[test]
fn large_pages_end_the_walk() {
    let mut rig = Rig::new(&[0x0f, 0xae, 0x1b]);
    rig.memory.write_obj(0x83u64, GuestAddress(PD + 8)).unwrap();
    rig.general.rbx = (2 << 20) + DATA;
    rig.memory.write_obj(u32::MAX, GuestAddress(DATA)).unwrap();
    rig.run();
    assert_eq!(rig.memory.read_obj::<u32>(GuestAddress(DATA)).unwrap(), 0);
}

#[test]
fn a_breakpoint_is_a_trap_behind_the_instruction() {
    let mut rig = Rig::new(&[0xcc]);
    assert!(matches!(rig.step(), Ok(Some(Exception::BREAKPOINT))));
    assert_eq!(rig.general.rip, CODE + 1);
}

#[test]
fn segment_bases() {
    let mut rig = Rig::new(&[0xf3, 0x48, 0x0f, 0xae, 0xd8, 0xf3, 0x48, 0x0f, 0xae, 0xc1]);
    rig.general.rax = 0x7fff_1234_5678;
    rig.run();
    assert_eq!(rig.system.gs.base, 0x7fff_1234_5678);
    rig.system.fs.base = 5;
    rig.run();
    assert_eq!(rig.general.rcx, 5);
    rig.general.rip = CODE;
    rig.general.rax = 1 << 50;
    assert_eq!(rig.fault(), Exception::PROTECTION);
    rig.system.cr4 &= !(1 << 16);
    assert_eq!(rig.fault(), Exception::UNDEFINED);
}

#[test]
fn sysret_goes_to_user_mode() {
    let mut rig = Rig::new(&[0x48, 0x0f, 0x07]);
    rig.fake.msr = 0x0023_0010 << 32;
    rig.general.rcx = 0x40_0000;
    rig.general.r11 = u64::MAX;
    rig.run();
    assert_eq!(rig.general.rip, 0x40_0000);
    assert_eq!(rig.general.rflags, 0x003c_7fd7);
    assert_eq!(
        (rig.system.cs.selector, rig.system.ss.selector),
        (0x33, 0x2b)
    );
    assert_eq!((rig.system.cs.dpl, rig.system.cs.l), (3, 1));
}

#[test]
fn smap_is_switched_by_a_flag() {
    let mut rig = Rig::new(&[0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca]);
    rig.run();
    assert_eq!(rig.general.rflags & general::AC, general::AC);
    rig.run();
    assert_eq!(rig.general.rflags & general::AC, 0);
}

#[test]
fn verw_looks_into_the_table() {
    // verw [rbx]
    let mut rig = Rig::new(&[0x0f, 0x00, 0x2b]);
    rig.system.gdt.base = DATA + 0x100;
    rig.system.gdt.limit = 31;
    let at = GuestAddress(DATA + 0x110);
    rig.memory.write_obj(0x00af_9b00_0000_ffffu64, at).unwrap();
    let at = GuestAddress(DATA + 0x118);
    rig.memory.write_obj(0x00cf_9300_0000_ffffu64, at).unwrap();
    for (selector, zero) in [(0x18u16, ZF), (0x10, 0), (0, 0), (0x1c, 0), (0x20, 0)] {
        rig.general.rip = CODE;
        rig.memory.write_obj(selector, GuestAddress(DATA)).unwrap();
        rig.run();
        assert_eq!(rig.general.rflags & ZF, zero, "{selector:#x}");
    }
}

#[rstest]
fn pushing_an_integer_is_the_processors(
    #[values(0, 1, -1, 77, -4096, i32::MAX, i32::MIN)] value: i32,
) {
    let mut theirs = Area::zero();
    let mut kept = Area::zero();
    // SAFETY: as in `with_state`.
    unsafe {
        asm!(
            "mov eax, 0xffffffff", "mov edx, 0xffffffff", "xsave64 [{kept}]",
            "fninit", "fild dword ptr [{value}]",
            "mov eax, 1", "xor edx, edx", "xsave64 [{theirs}]",
            "mov eax, 0xffffffff", "mov edx, 0xffffffff", "xrstor64 [{kept}]",
            kept = in(reg) kept.0.as_mut_ptr(), theirs = in(reg) theirs.0.as_mut_ptr(),
            value = in(reg) &raw const value, out("eax") _, out("edx") _,
        )
    };
    // fninit; fild dword ptr [rbx]
    let mut rig = Rig::new(&[0xdb, 0xe3, 0xdb, 0x03]);
    rig.fake.extended = some_state(0, 0).kvm();
    rig.memory.write_obj(value, GuestAddress(DATA)).unwrap();
    rig.run();
    rig.run();
    let ours = State::of(&rig.fake.extended);
    assert_eq!(ours.bytes(0..5), &theirs.0[0..5], "control, status, tags");
    assert_eq!(ours.bytes(32..42), &theirs.0[32..42], "ST0");
}

#[test]
fn what_a_task_left_in_the_x87_unit_is_cleared() {
    // fnclex; emms
    let mut rig = Rig::new(&[0xdb, 0xe2, 0x0f, 0x77]);
    let mut area = some_state(1, 5);
    area.0[2..4].copy_from_slice(&0xb8ffu16.to_le_bytes());
    rig.fake.extended = area.kvm();
    rig.run();
    assert_eq!(State::of(&rig.fake.extended).bytes(2..5), [0, 0x38, 0x80]);
    rig.run();
    assert_eq!(State::of(&rig.fake.extended).bytes(2..5), [0, 0x38, 0]);
}

#[test]
fn what_is_not_known_is_named() {
    // pshufb xmm0, xmm1
    let mut rig = Rig::new(&[0x66, 0x0f, 0x38, 0x00, 0xc1]);
    let Err(Halt::Error(error)) = rig.step() else {
        panic!("emulated?")
    };
    let told = error.to_string();
    assert!(told.contains("Pshufb") && told.contains("0x1000"), "{told}");
    let mut rig = Rig::new(&[0x90]);
    rig.general.rip = 1 << 30;
    assert!(matches!(
        rig.step(),
        Err(Halt::Error(EmulateError::Fetch { .. }))
    ));
    let mut rig = Rig::new(&[0x90]);
    rig.system.cs.l = 0;
    assert!(matches!(
        rig.step(),
        Err(Halt::Error(EmulateError::Mode { .. }))
    ));
}

proptest! {
    /// Whatever a guest has where its registers point: an outcome, never a panic.
    #[test]
    fn no_code_and_no_registers_make_it_panic(
        code in prop::collection::vec(any::<u8>(), 1..15),
        known in prop::sample::select(vec![
            vec![], vec![0x48, 0x0f, 0xae], vec![0x48, 0x0f, 0xc7], vec![0x0f, 0x00], vec![0xdb],
            vec![0xf3, 0x48, 0x0f, 0xb8], vec![0xf3, 0x0f, 0xae],
        ]),
        registers: [u64; 16],
        near: bool,
        tables: [u64; 4],
    ) {
        let code: Vec<u8> = known.into_iter().chain(code).collect();
        let mut rig = Rig::new(&code);
        let [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15] =
            registers.map(|value| if near { value & 0xf_ffc0 } else { value });
        rig.general = kvm_regs {
            rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15,
            rip: CODE, rflags: 2,
        };
        rig.system.gs.base = tables[0];
        rig.system.gdt.base = tables[1];
        rig.system.gdt.limit = tables[2] as u16;
        rig.memory.write_obj(tables[3], GuestAddress(PDPT + 8)).unwrap();
        let _ = rig.step();
    }
}
