//! The few x87 instructions of a kernel that clears what a task left in the unit (Intel SDM vol. 1, 8).

use iced_x86::{Instruction, MemorySize};

use super::{Cpu, Halt, xsave::State};

/// The component's bit in XSTATE_BV.
const X87: u64 = 1;
/// In the legacy region (SDM vol. 1, table 10-2): control, status, abridged tags, opcode, pointers.
const CONTROL: usize = 0;
const STATUS: usize = 2;
const TAGS: usize = 4;
const STACK: usize = 32;
const TOP_SHIFT: u16 = 11;

impl Cpu<'_> {
    fn change_x87(&mut self, change: impl FnOnce(&mut State)) -> Result<(), Halt> {
        let mut state = State::of(&self.backing.extended()?);
        change(&mut state);
        state.set_in_use(state.in_use() | X87);
        Ok(self.backing.set_extended(&state.to_kvm())?)
    }

    /// All registers empty.
    pub(super) fn emms(&mut self) -> Result<(), Halt> {
        self.change_x87(|state| state.put(TAGS, &[0]))
    }

    /// No exception, not busy, no stack fault.
    pub(super) fn fnclex(&mut self) -> Result<(), Halt> {
        self.change_x87(|state| {
            let status = half(state, STATUS) & 0x7f00;
            state.put(STATUS, &status.to_le_bytes());
        })
    }

    /// The initial state; the registers' contents stay.
    pub(super) fn fninit(&mut self) -> Result<(), Halt> {
        self.change_x87(|state| {
            state.put(CONTROL, &[0; 24]);
            state.put(CONTROL, &0x37fu16.to_le_bytes());
        })
    }

    /// Pushes an integer.
    pub(super) fn fild(&mut self, instruction: &Instruction) -> Result<(), Halt> {
        let size = match instruction.memory_size() {
            MemorySize::Int16 => 2,
            MemorySize::Int32 => 4,
            _ => 8,
        };
        let mut bytes = [0; 8];
        let address = self.address(instruction)?;
        self.read(address, bytes.get_mut(..size).unwrap_or_default())?;
        let unused = 64 - 8 * size as u32;
        let value = i64::from_le_bytes(bytes) << unused >> unused;
        self.change_x87(|state| {
            let status = half(state, STATUS);
            let top = (status >> TOP_SHIFT).wrapping_sub(1) & 7;
            let status = status & !(7 << TOP_SHIFT) | top << TOP_SHIFT;
            state.put(STATUS, &status.to_le_bytes());
            let tags = state.bytes(TAGS..TAGS + 1).first().copied().unwrap_or(0);
            state.put(TAGS, &[tags | 1 << top]);
            // Registers are kept relative to the top: each moves one down.
            let moved = state.bytes(STACK..STACK + 7 * 16).to_vec();
            state.put(STACK + 16, &moved);
            state.put(STACK, &extended(value));
        })
    }
}

fn half(state: &State, at: usize) -> u16 {
    state
        .bytes(at..at + 2)
        .try_into()
        .map_or(0, u16::from_le_bytes)
}

/// An integer in the 80-bit format: 64 bits of significand with the leading one, exponent, sign.
fn extended(value: i64) -> [u8; 16] {
    const BIAS: u16 = 16383;
    let mut bytes = [0; 16];
    let magnitude = value.unsigned_abs();
    if magnitude != 0 {
        let leading = magnitude.leading_zeros() as u16;
        let significand = magnitude << leading;
        let exponent = BIAS + 63 - leading;
        let sign = u16::from(value < 0) << 15;
        let (low, high) = bytes.split_at_mut(8);
        low.copy_from_slice(&significand.to_le_bytes());
        if let Some(to) = high.get_mut(..2) {
            to.copy_from_slice(&(exponent | sign).to_le_bytes());
        }
    }
    bytes
}
