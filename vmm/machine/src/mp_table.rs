//! The MP table (Intel MultiProcessor Specification 1.4, 4): how a kernel without ACPI finds its
//! processors and interrupt lines.

use isopod_memory::{Bytes, GuestAddress, GuestMemory};

use crate::layout;

/// Lines of the I/O APIC.
const LINES: u8 = 24;
/// The interrupt that the PIT is tied to, besides line 0 of the PICs.
const PIT_LINE: u8 = 2;
/// Version 1.4.
const SPECIFICATION: u8 = 4;
/// Of a local APIC: integrated.
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;

/// The table, floating pointer first, for `cpus` processors with APIC ids from 0.
fn build(cpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..cpus {
        // Usable; the first is the bootstrap processor.
        let flags = 1 | u8::from(id == 0) << 1;
        let mut processor = [0; 20];
        processor[..4].copy_from_slice(&[0, id, APIC_VERSION, flags]);
        // Signature and features, of which kernels look at "APIC" and "FPU".
        processor[4..8].copy_from_slice(&0x600u32.to_le_bytes());
        processor[8..12].copy_from_slice(&0x201u32.to_le_bytes());
        entry(&processor);
    }
    entry(b"\x01\x00ISA   ");
    let io_apic = cpus;
    let [a, b, c, d] = layout::IO_APIC.to_le_bytes();
    entry(&[2, io_apic, IO_APIC_VERSION, 1, a, b, c, d]);
    for line in 0..LINES {
        // The PIT's interrupt arrives at line 2, whose own source, the cascade, does not exist.
        let pin = match line {
            0 => PIT_LINE,
            PIT_LINE => continue,
            other => other,
        };
        // Vectored, as the bus has it: edge-triggered, active high.
        entry(&[3, 0, 0, 0, 0, line, io_apic, pin]);
    }
    // LINT0 takes the PICs' interrupts, LINT1 the NMI, at every processor.
    entry(&[4, 3, 0, 0, 0, 0, 0xff, 0]);
    entry(&[4, 1, 0, 0, 0, 0, 0xff, 1]);

    let mut header = [0; 44];
    let length = (header.len() + entries.len()) as u16;
    header[..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&length.to_le_bytes());
    header[6] = SPECIFICATION;
    header[8..16].copy_from_slice(b"ISOPOD  ");
    header[16..28].copy_from_slice(b"POD         ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    header[7] = missing(header.iter().chain(&entries));

    let mut pointer = [0; 16];
    let table = (layout::MP_TABLE + pointer.len() as u64) as u32;
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1;
    pointer[9] = SPECIFICATION;
    pointer[10] = missing(pointer.iter());
    [&pointer[..], &header, &entries].concat()
}

/// The byte that makes the sum zero.
fn missing<'a>(bytes: impl Iterator<Item = &'a u8>) -> u8 {
    bytes
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// Writes the table for `cpus` processors.
pub(crate) fn write(
    memory: &GuestMemory,
    cpus: u32,
) -> Result<(), isopod_memory::GuestMemoryError> {
    // The machine has checked that there are no more than 64.
    let cpus = u8::try_from(cpus.min(layout::MAX_CPUS)).unwrap_or(1);
    memory.write_slice(&build(cpus), GuestAddress(layout::MP_TABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up_for_every_number_of_processors() {
        for cpus in 1..=64 {
            let table = build(cpus);
            let (pointer, table) = table.split_at(16);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!((sum(pointer), sum(table)), (0, 0), "{cpus}");
            let length = u16::from_le_bytes([table[4], table[5]]);
            assert_eq!(usize::from(length), table.len());
            // Base memory above the table is a BIOS's; kernels reserve what lies to 1 MiB.
            assert!(layout::MP_TABLE + 16 + table.len() as u64 <= 1 << 20);
        }
    }

    #[test]
    fn entries_are_as_long_as_their_kind_says() {
        let table = build(3);
        let mut rest = &table[16 + 44..];
        let mut kinds = [0; 5];
        while let Some(kind) = rest.first() {
            kinds[usize::from(*kind)] += 1;
            rest = &rest[if *kind == 0 { 20 } else { 8 }..];
        }
        assert_eq!(kinds, [3, 1, 1, 23, 2]);
        let count = u16::from_le_bytes([table[16 + 34], table[16 + 35]]);
        assert_eq!(i32::from(count), kinds.iter().sum::<i32>());
    }
}
