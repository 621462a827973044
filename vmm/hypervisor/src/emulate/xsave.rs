//! XSAVE and XRSTOR in all their forms (Intel SDM vol. 1, 13.7 to 13.12).
//!
//! KVM gives and takes the state in the standard format of this host. Supervisor components do not exist
//! for a guest: `IA32_XSS` is zero, so XSAVES is XSAVEC. The optimisations that skip components which
//! did not change are allowed to be missed, and are.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use iced_x86::Instruction;
use kvm_bindings::kvm_xsave;

use super::{Cpu, Exception, Halt};

/// Bytes of a state that KVM gives.
const STATE: usize = 4096;
/// The legacy region: x87 and SSE.
const LEGACY: usize = 512;
/// Behind it.
const HEADER: usize = 64;
const EXTENDED: usize = LEGACY + HEADER;

/// Components.
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// In XCOMP_BV: the compacted format.
const COMPACTED: u64 = 1 << 63;

const MXCSR: std::ops::Range<usize> = 24..28;
const MXCSR_MASK: std::ops::Range<usize> = 28..32;
const MXCSR_INITIAL: u32 = 0x1f80;
const FCW_INITIAL: u16 = 0x37f;

const CR0_TS: u64 = 1 << 3;
const CR4_OSXSAVE: u64 = 1 << 18;

/// How components lie behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Each at its fixed offset.
    Standard,
    /// One behind the other, those that were asked for.
    Compacted,
}

/// A component behind the header.
#[derive(Clone, Copy, Debug)]
struct Component {
    bit: u64,
    offset: usize,
    bytes: usize,
    /// Begins at a multiple of 64 in the compacted format.
    aligned: bool,
}

/// This host's user components, which are the guest's too (leaf 0xd is passed on).
fn components() -> &'static [Component] {
    static COMPONENTS: OnceLock<Vec<Component>> = OnceLock::new();
    COMPONENTS.get_or_init(|| {
        let describe = |index: u32| {
            let leaf = __cpuid_count(0xd, index);
            let supervisor = leaf.ecx & 1 != 0;
            let (offset, bytes) = (leaf.ebx as usize, leaf.eax as usize);
            let fits = bytes > 0 && offset >= EXTENDED && offset.checked_add(bytes)? <= STATE;
            (fits && !supervisor).then_some(Component {
                bit: 1 << index,
                offset,
                bytes,
                aligned: leaf.ecx & 2 != 0,
            })
        };
        (2..63).filter_map(describe).collect()
    })
}

/// The components of `layout` with their offsets in `format`.
fn placed(format: Format, layout: u64) -> impl Iterator<Item = (Component, usize)> {
    let mut next = EXTENDED;
    components()
        .iter()
        .filter(move |component| layout & component.bit != 0)
        .map(move |component| {
            let offset = match format {
                Format::Standard => component.offset,
                Format::Compacted => {
                    if component.aligned {
                        next = next.next_multiple_of(64);
                    }
                    let offset = next;
                    next += component.bytes;
                    offset
                }
            };
            (*component, offset)
        })
}

/// Bytes of an area that holds `layout`.
fn extent(format: Format, layout: u64) -> usize {
    placed(format, layout)
        .map(|(component, offset)| offset + component.bytes)
        .fold(EXTENDED, usize::max)
}

/// A state as bytes. Offsets come from tables of this module or are checked by [`components`].
pub(super) struct State([u8; STATE]);

impl State {
    pub(super) fn of(xsave: &kvm_xsave) -> Self {
        let mut bytes = [0; STATE];
        for (to, word) in bytes.chunks_exact_mut(4).zip(xsave.region) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self(bytes)
    }

    pub(super) fn to_kvm(&self) -> kvm_xsave {
        let mut xsave = kvm_xsave::default();
        for (word, from) in xsave.region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
        }
        xsave
    }

    pub(super) fn bytes(&self, at: std::ops::Range<usize>) -> &[u8] {
        self.0.get(at).unwrap_or_default()
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(to) = self.0.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    }

    fn clear(&mut self, at: std::ops::Range<usize>) {
        if let Some(to) = self.0.get_mut(at) {
            to.fill(0);
        }
    }

    fn word(&self, at: usize) -> u64 {
        self.bytes(at..at + 8)
            .try_into()
            .map_or(0, u64::from_le_bytes)
    }

    fn mxcsr(&self) -> u32 {
        self.bytes(MXCSR)
            .try_into()
            .map_or(MXCSR_INITIAL, u32::from_le_bytes)
    }

    /// XSTATE_BV: the components that are not in their initial state.
    pub(super) fn in_use(&self) -> u64 {
        self.word(LEGACY)
    }

    pub(super) fn set_in_use(&mut self, components: u64) {
        self.put(LEGACY, &components.to_le_bytes());
    }

    fn copy(&mut self, from: &Self, at: std::ops::Range<usize>) {
        self.put(at.start, from.bytes(at.clone()));
    }

    /// The x87 registers; with `None` their initial state.
    fn load_x87(&mut self, from: Option<&Self>) {
        match from {
            Some(from) => {
                self.copy(from, 0..24);
                self.copy(from, 32..160);
            }
            None => {
                self.clear(0..24);
                self.clear(32..160);
                self.put(0, &FCW_INITIAL.to_le_bytes());
            }
        }
    }

    /// XMM0 to XMM15.
    fn load_sse(&mut self, from: Option<&Self>) {
        match from {
            Some(from) => self.copy(from, 160..416),
            None => self.clear(160..416),
        }
    }
}

impl Cpu<'_> {
    /// The components that an instruction is about, and where its area is.
    fn requested(&mut self, instruction: &Instruction) -> Result<(u64, u64), Halt> {
        if self.system.cr4 & CR4_OSXSAVE == 0 {
            return Err(Exception::UNDEFINED.into());
        }
        if self.system.cr0 & CR0_TS != 0 {
            return Err(Exception::NOT_AVAILABLE.into());
        }
        let address = self.address(instruction)?;
        if address & 63 != 0 {
            return Err(Exception::PROTECTION.into());
        }
        let asked = self.general.rdx << 32 | self.general.rax & 0xffff_ffff;
        Ok((asked & self.backing.enabled_components()?, address))
    }

    /// XSAVE, XSAVEOPT (standard); XSAVEC, XSAVES (compacted).
    pub(super) fn xsave(&mut self, instruction: &Instruction, format: Format) -> Result<(), Halt> {
        let (wanted, address) = self.requested(instruction)?;
        let state = State::of(&self.backing.extended()?);
        let mut in_use = state.in_use();
        if format == Format::Compacted && state.mxcsr() != MXCSR_INITIAL {
            in_use |= SSE;
        }
        // What is not written keeps its bytes: the area is read, changed and written back.
        let mut area = State([0; STATE]);
        let length = extent(format, wanted);
        self.read(address, area.0.get_mut(..length).unwrap_or_default())?;

        let written = match format {
            Format::Standard => wanted,
            Format::Compacted => wanted & in_use,
        };
        if written & X87 != 0 {
            area.load_x87(Some(&state));
        }
        if written & SSE != 0 {
            area.load_sse(Some(&state));
        }
        let with_mxcsr = match format {
            Format::Standard => SSE | AVX,
            Format::Compacted => SSE,
        };
        if written & with_mxcsr != 0 {
            area.copy(&state, MXCSR);
            area.copy(&state, MXCSR_MASK);
        }
        for (component, offset) in placed(format, wanted) {
            if written & component.bit != 0 {
                let from = component.offset..component.offset + component.bytes;
                area.put(offset, state.bytes(from));
            }
        }
        match format {
            Format::Standard => area.set_in_use(area.in_use() & !wanted | in_use & wanted),
            Format::Compacted => {
                area.set_in_use(in_use & wanted);
                area.put(LEGACY + 8, &(wanted | COMPACTED).to_le_bytes());
            }
        }
        self.write(address, area.bytes(0..length))
    }

    /// XRSTOR; XRSTORS takes the compacted format only.
    pub(super) fn xrstor(
        &mut self,
        instruction: &Instruction,
        supervisor: bool,
    ) -> Result<(), Halt> {
        let (wanted, address) = self.requested(instruction)?;
        let mut area = State([0; STATE]);
        self.read(address, area.0.get_mut(..EXTENDED).unwrap_or_default())?;
        let enabled = self.backing.enabled_components()?;
        let (saved, layout) = (area.in_use(), area.word(LEGACY + 8));
        let format = if layout & COMPACTED != 0 {
            Format::Compacted
        } else {
            Format::Standard
        };
        let layout = layout & !COMPACTED;
        let reserved = |at: usize| area.bytes(at..EXTENDED).iter().any(|byte| *byte != 0);
        let wrong = match format {
            // Bytes 8 to 23 of the header are zero.
            Format::Standard => {
                supervisor || layout != 0 || area.word(LEGACY + 16) != 0 || saved & !enabled != 0
            }
            Format::Compacted => {
                layout & !enabled != 0 || saved & !layout != 0 || reserved(LEGACY + 16)
            }
        };
        if wrong {
            return Err(Exception::PROTECTION.into());
        }
        let layout = match format {
            Format::Standard => saved,
            Format::Compacted => layout,
        };
        let length = extent(format, layout);
        self.read(address, area.0.get_mut(..length).unwrap_or_default())?;

        let mut state = State::of(&self.backing.extended()?);
        let present = |bit: u64| (saved & bit != 0).then_some(&area);
        if wanted & X87 != 0 {
            state.load_x87(present(X87));
        }
        if wanted & SSE != 0 {
            state.load_sse(present(SSE));
        }
        let mxcsr = match format {
            Format::Standard if wanted & (SSE | AVX) != 0 => Some(area.mxcsr()),
            Format::Compacted if wanted & SSE != 0 => {
                Some(present(SSE).map_or(MXCSR_INITIAL, State::mxcsr))
            }
            _ => None,
        };
        if let Some(mxcsr) = mxcsr {
            if mxcsr & !0xffff != 0 {
                return Err(Exception::PROTECTION.into());
            }
            state.put(MXCSR.start, &mxcsr.to_le_bytes());
        }
        for (component, offset) in placed(format, layout) {
            if wanted & component.bit != 0 && saved & component.bit != 0 {
                state.put(
                    component.offset,
                    area.bytes(offset..offset + component.bytes),
                );
            }
        }
        for component in components() {
            if wanted & component.bit != 0 && saved & component.bit == 0 {
                state.clear(component.offset..component.offset + component.bytes);
            }
        }
        state.set_in_use(state.in_use() & !wanted | saved & wanted);
        state.put(LEGACY + 8, &[0; 8]);
        Ok(self.backing.set_extended(&state.to_kvm())?)
    }

    pub(super) fn ldmxcsr(&mut self, instruction: &Instruction) -> Result<(), Halt> {
        let mut bytes = [0; 4];
        self.read(self.address(instruction)?, &mut bytes)?;
        if u32::from_le_bytes(bytes) & !0xffff != 0 {
            return Err(Exception::PROTECTION.into());
        }
        let mut state = State::of(&self.backing.extended()?);
        state.put(MXCSR.start, &bytes);
        state.set_in_use(state.in_use() | SSE);
        Ok(self.backing.set_extended(&state.to_kvm())?)
    }

    pub(super) fn stmxcsr(&mut self, instruction: &Instruction) -> Result<(), Halt> {
        let mxcsr = State::of(&self.backing.extended()?).mxcsr();
        let address = self.address(instruction)?;
        self.write(address, &mxcsr.to_le_bytes())
    }
}
