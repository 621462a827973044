use std::io::Write;

use BootProtocol::{Linux64, Pvh};
use isopod_hypervisor::Protocol;

use super::*;

/// An ELF file with one segment that is loaded at `address`, `filled` bytes of it.
fn elf(address: u64, filled: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&segment(address, filled)).unwrap();
    file
}

fn segment(address: u64, filled: u64) -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[24..32].copy_from_slice(&address.to_le_bytes());
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
    bytes[64..68].copy_from_slice(&1u32.to_le_bytes());
    bytes[72..80].copy_from_slice(&120u64.to_le_bytes());
    bytes[88..96].copy_from_slice(&address.to_le_bytes());
    bytes[96..104].copy_from_slice(&filled.to_le_bytes());
    bytes[104..112].copy_from_slice(&filled.to_le_bytes());
    bytes.extend([0x90; 16]);
    bytes
}

/// One at 16 MiB with a note of this kind, too, whose value is `entry`.
fn noted(kind: u32, entry: u32) -> File {
    let mut bytes = segment(16 << 20, 16);
    // The second header follows the first; what the first loads moves behind it.
    bytes[56..58].copy_from_slice(&2u16.to_le_bytes());
    bytes[72..80].copy_from_slice(&176u64.to_le_bytes());
    let mut header = [0; 56];
    header[..4].copy_from_slice(&4u32.to_le_bytes());
    header[8..16].copy_from_slice(&192u64.to_le_bytes());
    header[32..40].copy_from_slice(&20u64.to_le_bytes());
    header[48..56].copy_from_slice(&4u64.to_le_bytes());
    bytes.splice(120..120, header);
    for word in [4, 4, kind, u32::from_le_bytes(*b"Xen\0"), entry] {
        bytes.extend(word.to_le_bytes());
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

fn memory() -> GuestMemory {
    isopod_memory::anonymous(&[(0, 64 << 20)]).unwrap()
}

#[test]
fn a_kernel_is_loaded_where_it_says() {
    let memory = memory();
    let entry = load(&memory, &mut elf(16 << 20, 16), Linux64, "quiet", 2).unwrap();
    assert_eq!(entry.instruction, 16 << 20);
    let mut code = [0; 16];
    memory
        .read_slice(&mut code, GuestAddress(16 << 20))
        .unwrap();
    assert_eq!(code, [0x90; 16]);
    let mut line = [0; 6];
    let at = GuestAddress(layout::COMMAND_LINE);
    memory.read_slice(&mut line, at).unwrap();
    assert_eq!(&line, b"quiet\0");
    let signature: u32 = memory.read_obj(GuestAddress(layout::MP_TABLE)).unwrap();
    assert_eq!(signature.to_le_bytes(), *b"_MP_");
}

#[test]
fn a_kernel_that_does_not_fit_is_refused() {
    let memory = memory();
    for (address, filled) in [(63 << 20, 2 << 20), (2 << 30, 16), (16 << 20, u64::MAX)] {
        assert!(load(&memory, &mut elf(address, filled), Linux64, "", 1).is_err());
    }
    assert!(load(&memory, &mut elf(0x1000, 16), Linux64, "", 1).is_err());
}

#[test]
fn what_is_no_kernel_is_refused() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"MZ and so on").unwrap();
    let error = load(&memory(), &mut file, Linux64, "", 1).unwrap_err();
    assert!(matches!(error, BootError::Kernel(_)), "{error}");
}

#[test]
fn the_map_leaves_out_what_a_bios_would_have() {
    let memory = isopod_memory::anonymous(&[(0, 2 << 20), (4 << 30, 1 << 20)]).unwrap();
    assert_eq!(
        memory_map(&memory),
        [
            (0, 0x9fc00, RAM),
            (0x9fc00, 0x60400, RESERVED),
            (1 << 20, 1 << 20, RAM),
            (4 << 30, 1 << 20, RAM),
        ]
    );
}

#[test]
fn a_kernel_that_offers_pvh_is_told_of_the_machine() {
    const ENTRY: u32 = (16 << 20) + 8;
    let memory = memory();
    let entry = load(&memory, &mut noted(18, ENTRY), Pvh, "quiet", 1).unwrap();
    assert_eq!(entry.instruction, u64::from(ENTRY));
    let Protocol::Pvh { start_info } = entry.protocol else {
        panic!("{entry:?}");
    };
    let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    // Magic, version, no modules, no RSDP.
    assert_eq!(read(start_info), 0x1_336e_c578);
    assert_eq!((read(start_info + 8), read(start_info + 16)), (0, 0));
    let line = read(start_info + 24);
    let mut text = [0; 6];
    memory.read_slice(&mut text, GuestAddress(line)).unwrap();
    assert_eq!(&text, b"quiet\0");
    assert_eq!(read(start_info + 32), 0);
    let (map, entries) = (read(start_info + 40), read(start_info + 48));
    assert_eq!(entries, memory_map(&memory).len() as u64);
    let told: Vec<_> = (0..entries)
        .map(|index| map + 24 * index)
        .map(|at| (read(at), read(at + 8), read(at + 16) as u32))
        .collect();
    assert_eq!(told, memory_map(&memory));
    // 32-bit code.
    let code: u64 = memory.read_obj(GuestAddress(entry.gdt + 16)).unwrap();
    assert_eq!(code, 0x00cf_9b00_0000_ffff);
}

#[test]
fn a_kernel_without_pvh_is_not_entered_by_it() {
    for mut file in [elf(16 << 20, 16), noted(17, 16 << 20)] {
        let error = load(&memory(), &mut file, Pvh, "", 1).unwrap_err();
        assert!(matches!(error, BootError::NoPvh), "{error}");
    }
    // Nor where no memory is, or boot data.
    for entry in [0, 0x1000, 1 << 30, u32::MAX] {
        let error = load(&memory(), &mut noted(18, entry), Pvh, "", 1).unwrap_err();
        assert!(matches!(error, BootError::Entry(_)), "{error}");
    }
    // Its other way in is still there.
    load(&memory(), &mut noted(18, 0), Linux64, "", 1).unwrap();
}
