//! Loading an uncompressed kernel and entering it by the 64-bit boot protocol (kernel,
//! Documentation/arch/x86/boot.rst and zero-page.rst).
//!
//! Not by PVH, which a kernel may offer too: there a kernel makes its own way to 64-bit mode, which
//! costs instructions and gives nothing. The file is parsed inside the jail.

use std::fs::File;

use isopod_hypervisor::Entry;
use isopod_memory::{
    AddressSpace, Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion,
};
use linux_loader::{
    bootparam::{boot_e820_entry, boot_params},
    configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator},
    loader::{Elf, KernelLoader},
};

use crate::{layout, mp_table};

/// "HdrS".
const SETUP_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// A loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// Page tables map this much.
const MAPPED: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
/// Present and writable; a large page.
const TABLE: u64 = 3;
const PAGE: u64 = 1 << 7 | 3;

/// A kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It is not an uncompressed kernel, or does not fit.
    #[error("load the kernel: {0}")]
    Kernel(String),
    /// Its first instruction is where no page table leads.
    #[error("the kernel's entry {0:#x} is not between 1 MiB and 1 GiB")]
    Entry(u64),
    /// Boot data does not fit into memory.
    #[error("write boot data: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The zero page.
    #[error("write the zero page: {0}")]
    ZeroPage(String),
}

/// Puts kernel, command line and tables into memory and says where to enter.
pub(crate) fn load(
    memory: &GuestMemory,
    kernel: &mut File,
    command_line: &str,
    cpus: u32,
) -> Result<Entry, BootError> {
    let high = GuestAddress(layout::HIGH_RAM);
    let loaded = Elf::load(memory, None, kernel, Some(high))
        .map_err(|error| BootError::Kernel(error.to_string()))?;
    let instruction = loaded.kernel_load.0;
    if !(layout::HIGH_RAM..MAPPED).contains(&instruction) {
        return Err(BootError::Entry(instruction));
    }
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    memory.write_slice(&line, GuestAddress(layout::COMMAND_LINE))?;
    write_page_tables(memory)?;
    write_zero_page(memory, line.len() as u32)?;
    mp_table::write(memory, cpus)?;
    let entry = Entry {
        instruction,
        stack: layout::STACK,
        argument: layout::ZERO_PAGE,
        gdt: layout::GDT,
        page_tables: layout::PAGE_TABLES,
    };
    for (index, descriptor) in Entry::DESCRIPTORS.into_iter().enumerate() {
        let at = GuestAddress(layout::GDT + 8 * index as u64);
        memory.write_obj(descriptor, at)?;
    }
    Ok(entry)
}

/// The first GiB onto itself, in large pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let (top, middle, last) = (
        layout::PAGE_TABLES,
        layout::PAGE_TABLES + 0x1000,
        layout::PAGE_TABLES + 0x2000,
    );
    memory.write_obj(middle | TABLE, GuestAddress(top))?;
    memory.write_obj(last | TABLE, GuestAddress(middle))?;
    for index in 0..MAPPED / LARGE_PAGE {
        let at = GuestAddress(last + 8 * index);
        memory.write_obj((index * LARGE_PAGE) | PAGE, at)?;
    }
    Ok(())
}

fn write_zero_page(memory: &GuestMemory, command_line: u32) -> Result<(), BootError> {
    let mut page = boot_params::default();
    page.hdr.type_of_loader = LOADER_UNKNOWN;
    page.hdr.boot_flag = BOOT_FLAG;
    page.hdr.header = SETUP_MAGIC;
    page.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    page.hdr.cmdline_size = command_line;
    let map = memory_map(memory);
    for (slot, (addr, size, kind)) in page.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            type_: *kind,
        };
    }
    page.e820_entries = map.len() as u8;
    let parameters = BootParams::new(&page, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&parameters, memory)
        .map_err(|error| BootError::ZeroPage(error.to_string()))
}

/// What the guest may use, and what it may not.
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::MP_TABLE, E820_RAM),
        (
            layout::MP_TABLE,
            layout::HIGH_RAM - layout::MP_TABLE,
            E820_RESERVED,
        ),
    ];
    for region in memory.iter() {
        let (start, bytes) = (region.start_addr().0, region.len());
        let skipped = layout::HIGH_RAM.saturating_sub(start);
        map.push((start + skipped, bytes.saturating_sub(skipped), E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An ELF file with one segment that is loaded at `address`, `filled` bytes of it.
    fn elf(address: u64, filled: u64) -> File {
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
        let entry = load(&memory, &mut elf(16 << 20, 16), "quiet", 2).unwrap();
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
            assert!(load(&memory, &mut elf(address, filled), "", 1).is_err());
        }
        assert!(load(&memory, &mut elf(0x1000, 16), "", 1).is_err());
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"MZ and so on").unwrap();
        let error = load(&memory(), &mut file, "", 1).unwrap_err();
        assert!(matches!(error, BootError::Kernel(_)), "{error}");
    }

    #[test]
    fn the_map_leaves_out_what_a_bios_would_have() {
        let memory = isopod_memory::anonymous(&[(0, 2 << 20), (4 << 30, 1 << 20)]).unwrap();
        assert_eq!(
            memory_map(&memory),
            [
                (0, 0x9fc00, E820_RAM),
                (0x9fc00, 0x60400, E820_RESERVED),
                (1 << 20, 1 << 20, E820_RAM),
                (4 << 30, 1 << 20, E820_RAM),
            ]
        );
    }
}
