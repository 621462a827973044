//! XSAVE areas: what the processor writes and reads beside what is emulated.

use super::*;

/// An area as XSAVE wants it.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Area(pub [u8; 4096]);

impl Area {
    pub(super) fn zero() -> Box<Self> {
        Box::new(Self([0; 4096]))
    }

    pub(super) fn kvm(&self) -> kvm_xsave {
        let mut xsave = kvm_xsave::default();
        for (word, from) in xsave.region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_le_bytes(from.try_into().unwrap());
        }
        xsave
    }
}

/// Everything the processor holds becomes `from`, then `$save` writes to `to`, then all is as before.
macro_rules! with_state {
    ($from:expr, $save:literal, $to:expr, $mask:expr) => {{
        let mut before = Area::zero();
        let mask: u64 = $mask;
        // SAFETY: `before` takes what the processor holds and gives it back, so that the compiler's
        // registers are as they were; the areas are aligned, 4096 bytes long, and large enough for the
        // components of `xcr0`.
        unsafe {
            asm!(
                "mov eax, 0xffffffff", "mov edx, 0xffffffff", "xsave64 [{before}]",
                "xrstor64 [{from}]",
                "mov eax, {low:e}", "mov edx, {high:e}",
                concat!($save, " [{to}]"),
                "mov eax, 0xffffffff", "mov edx, 0xffffffff", "xrstor64 [{before}]",
                before = in(reg) before.0.as_mut_ptr(),
                from = in(reg) $from.0.as_ptr(),
                to = in(reg) $to.0.as_mut_ptr(),
                low = in(reg) mask as u32, high = in(reg) (mask >> 32) as u32,
                out("eax") _, out("edx") _,
            )
        };
    }};
}

/// A state with something in the named components.
pub(super) fn some_state(in_use: u64, seed: u8) -> Box<Area> {
    let mut area = Area::zero();
    area.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    area.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    let fill = |bytes: &mut [u8]| {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = seed.wrapping_add(at as u8);
        }
    };
    if in_use & 1 != 0 {
        area.0[4] = 0x80;
        // ST0: ten bytes of sixteen.
        fill(&mut area.0[32..42]);
    }
    if in_use & 2 != 0 {
        fill(&mut area.0[160..416]);
    }
    if in_use & 4 != 0 {
        fill(&mut area.0[576..832]);
    }
    area.0[512..520].copy_from_slice(&in_use.to_le_bytes());
    area
}

/// What the two writers must agree on: all but MXCSR_MASK, which KVM fills from the host.
fn comparable(area: &[u8]) -> Vec<u8> {
    let mut bytes = area.to_vec();
    bytes[28..32].fill(0);
    bytes
}

/// XSTATE_BV: what was in use (Intel SDM vol. 1, 13.4.2).
fn components(area: &Area) -> u64 {
    u64::from_le_bytes(area.0[512..520].try_into().unwrap())
}

#[rstest]
fn saving_is_the_processors(
    #[values(0, 1, 2, 3, 4, 6, 7)] in_use: u64,
    #[values(1, 2, 4, 6, 7)] wanted: u64,
) {
    let state = some_state(in_use & xcr0(), 0x31);
    for (code, compacted) in [
        ([0x48, 0x0f, 0xae, 0x23], false),
        ([0x48, 0x0f, 0xc7, 0x23], true),
    ] {
        let mut ours = Area::zero();
        // Old contents must survive where the processor leaves them.
        ours.0.fill(0xee);
        ours.0[512..576].fill(0);
        let (mut theirs, mut full) = (Area::zero(), Area::zero());
        // A processor that is interrupted after it has loaded the state may take more of it for in use.
        for _ in 0..1000 {
            theirs.0 = ours.0;
            if compacted {
                with_state!(state, "xsavec64", theirs, wanted);
            } else {
                with_state!(state, "xsave64", theirs, wanted);
            }
            // Its own notion of what is in use, in the standard format, is what KVM gives.
            with_state!(state, "xsave64", full, u64::MAX);
            if components(&theirs) == components(&full) & wanted {
                break;
            }
        }
        let mut rig = Rig::new(&code);
        rig.fake.extended = full.kvm();
        rig.memory.write_slice(&ours.0, GuestAddress(DATA)).unwrap();
        (rig.general.rax, rig.general.rdx) = (wanted, 0);
        rig.run();
        rig.memory
            .read_slice(&mut ours.0, GuestAddress(DATA))
            .unwrap();
        assert_eq!(
            comparable(&ours.0[..832]),
            comparable(&theirs.0[..832]),
            "in use {in_use}, wanted {wanted}, compacted {compacted}"
        );
    }
}

#[rstest]
fn restoring_is_the_processors(
    #[values(0, 1, 2, 4, 6, 7)] saved: u64,
    #[values(1, 2, 4, 6, 7)] wanted: u64,
    #[values(false, true)] compacted: bool,
) {
    let enabled = xcr0();
    let before = some_state(7 & enabled, 0x11);
    let mut area = Area::zero();
    if compacted {
        let source = some_state(saved & enabled, 0x77);
        with_state!(source, "xsavec64", area, 7);
    } else {
        area = some_state(saved & enabled, 0x77);
    }
    // The processor: `before`, then the area under test, then look.
    let mut theirs = Area::zero();
    let mut kept = Area::zero();
    // SAFETY: as in `with_state`.
    unsafe {
        asm!(
            "mov eax, 0xffffffff", "mov edx, 0xffffffff", "xsave64 [{kept}]",
            "xrstor64 [{before}]",
            "mov eax, {low:e}", "xor edx, edx", "xrstor64 [{area}]",
            "mov eax, 0xffffffff", "mov edx, 0xffffffff", "xsave64 [{theirs}]",
            "xrstor64 [{kept}]",
            kept = in(reg) kept.0.as_mut_ptr(), before = in(reg) before.0.as_ptr(),
            area = in(reg) area.0.as_ptr(), theirs = in(reg) theirs.0.as_mut_ptr(),
            low = in(reg) wanted as u32, out("eax") _, out("edx") _,
        )
    };
    let mut rig = Rig::new(&[0x48, 0x0f, 0xae, 0x2b]);
    rig.fake.extended = before.kvm();
    rig.memory.write_slice(&area.0, GuestAddress(DATA)).unwrap();
    rig.general.rax = wanted;
    rig.run();
    let ours = State::of(&rig.fake.extended);
    // The header may differ: the processor finds out which components are in their initial state.
    for part in [0..24, 24..28, 32..416, 576..832] {
        assert_eq!(
            ours.bytes(part.clone()),
            &theirs.0[part.clone()],
            "saved {saved}, wanted {wanted}, compacted {compacted}, {part:?}"
        );
    }
}

#[rstest]
#[case::unaligned(DATA + 8, |_: &mut Area| {})]
#[case::component_that_is_not_enabled(DATA, |area: &mut Area| area.0[519] = 0x40)]
#[case::reserved_byte(DATA, |area: &mut Area| area.0[530] = 1)]
#[case::mxcsr(DATA, |area: &mut Area| area.0[26] = 1)]
fn a_wrong_area_faults(#[case] address: u64, #[case] spoil: impl Fn(&mut Area)) {
    let mut rig = Rig::new(&[0x48, 0x0f, 0xae, 0x2b]);
    let mut area = some_state(3, 1);
    spoil(&mut area);
    rig.memory
        .write_slice(&area.0, GuestAddress(address))
        .unwrap();
    rig.general.rbx = address;
    rig.general.rax = 7;
    assert_eq!(rig.fault(), Exception::PROTECTION);
    assert_eq!(rig.general.rip, CODE, "a fault leaves the instruction");
}

#[test]
fn xsave_is_undefined_until_the_guest_turns_it_on_and_unavailable_between_tasks() {
    let mut rig = Rig::new(&[0x48, 0x0f, 0xae, 0x23]);
    rig.system.cr4 &= !(1 << 18);
    assert_eq!(rig.fault(), Exception::UNDEFINED);
    rig.system.cr4 |= 1 << 18;
    rig.system.cr0 |= 1 << 3;
    assert_eq!(rig.fault(), Exception::NOT_AVAILABLE);
}
