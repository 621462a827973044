//! Any instructions, registers, page tables and extended state of a guest in supervisor mode: the
//! emulation completes, faults or refuses, and a fault has no effect on registers.

#![no_main]

use isopod_hypervisor::testing::{CODE, Guest, MEMORY, Registers, TABLES};
use libfuzzer_sys::fuzz_target;

/// Instructions that are emulated, so that they need not be found byte by byte.
const KNOWN: &[&[u8]] = &[
    &[0xcc],
    &[0x48, 0x0f, 0x07],
    &[0xf3, 0x48, 0x0f, 0xb8],
    &[0xf3, 0x0f, 0xb8],
    &[0xf0, 0x48, 0x0f, 0xc7],
    &[0xf3, 0x48, 0x0f, 0xae],
    &[0xf3, 0x0f, 0xae],
    &[0x0f, 0x01, 0xca],
    &[0x0f, 0x01, 0xcb],
    &[0x0f, 0x00],
    &[0x0f, 0xae],
    &[0x48, 0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x48, 0x0f, 0xc7],
    &[0x9b],
    &[0x0f, 0x77],
    &[0xdb],
    &[0xdd],
    &[0xdf],
    &[0x66, 0x0f, 0xae],
];

#[derive(arbitrary::Arbitrary, Debug)]
struct Input {
    /// One that is known, and bytes behind it.
    code: Vec<(u8, [u8; 6])>,
    raw: Vec<u8>,
    /// Numbers near where there is memory, or any.
    general: [Number; 16],
    flags: u64,
    control: [Bit; 3],
    bases: [Number; 2],
    enabled: u8,
    wild_enabled: bool,
    msr: u64,
    /// Entries of the page tables.
    entries: Vec<(u16, u64)>,
    /// Numbers in memory: what an area to restore looks like.
    memory: Vec<(u32, u64)>,
    extended: Vec<(u16, u32)>,
}

#[derive(arbitrary::Arbitrary, Debug)]
enum Number {
    Near(u16),
    Aligned(u8),
    End(u8),
    Any(u64),
}

impl Number {
    fn get(&self) -> u64 {
        match *self {
            Self::Near(at) => 0x8000 + u64::from(at),
            Self::Aligned(at) => 0x20000 + 64 * u64::from(at),
            Self::End(before) => MEMORY - u64::from(before),
            Self::Any(number) => number,
        }
    }
}

#[derive(arbitrary::Arbitrary, Debug)]
enum Bit {
    None,
    One(u8),
    Any(u64),
}

impl Bit {
    fn get(&self) -> u64 {
        match *self {
            Self::None => 0,
            Self::One(bit) => 1 << (bit % 64),
            Self::Any(number) => number,
        }
    }
}

fuzz_target!(|input: Input| {
    let registers = Registers {
        general: std::array::from_fn(|n| input.general[n].get()),
        flags: input.flags,
        control: std::array::from_fn(|n| input.control[n].get()),
        bases: std::array::from_fn(|n| input.bases[n].get()),
        enabled: match input.wild_enabled {
            true => u64::from(input.enabled).wrapping_mul(0x0101_0101_0101_0101),
            false => u64::from(input.enabled) | 1,
        },
        msr: input.msr,
    };
    let Some(mut guest) = Guest::new(&registers) else {
        return;
    };
    let mut code = Vec::new();
    for (known, rest) in input.code.iter().take(8) {
        code.extend(KNOWN[usize::from(*known) % KNOWN.len()]);
        code.extend(rest);
    }
    code.extend(input.raw.iter().take(64));
    for &(at, value) in input.memory.iter().take(32) {
        guest.put(u64::from(at) % MEMORY, value);
    }
    for &(at, entry) in input.entries.iter().take(16) {
        guest.put(TABLES + 8 * u64::from(at % 2048), entry);
    }
    let mut words = vec![0; 1024];
    for &(at, word) in input.extended.iter().take(32) {
        words[usize::from(at) % 1024] = word;
    }
    guest.set_extended(&words);
    guest.write(CODE, &code);
    guest.run(8);
});
