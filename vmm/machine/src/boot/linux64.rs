//! Linux's 64-bit boot protocol (kernel, Documentation/arch/x86/boot.rst and zero-page.rst): paging maps
//! memory onto itself, and a page tells what the machine is.

use isopod_hypervisor::Protocol;
use isopod_memory::GuestMemoryError;
use linux_loader::{
    bootparam::{boot_e820_entry, boot_params},
    configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator},
};

use super::{
    BootError, Bytes, Entry, GuestAddress, GuestMemory, KernelLoaderResult, checked, layout,
    memory_map,
};

/// Page tables map this much.
pub(super) const MAPPED: u64 = 1 << 30;

/// "HdrS".
const SETUP_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// A loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
const LARGE_PAGE: u64 = 2 << 20;
/// Present and writable; a large page.
const TABLE: u64 = 3;
const PAGE: u64 = 1 << 7 | 3;

/// Writes page tables and zero page.
pub(super) fn load(
    memory: &GuestMemory,
    loaded: &KernelLoaderResult,
    command_line: u32,
) -> Result<Entry, BootError> {
    let instruction = checked(loaded.kernel_load.0)?;
    write_page_tables(memory)?;
    write_zero_page(memory, command_line)?;
    Ok(Entry {
        instruction,
        gdt: layout::GDT,
        protocol: Protocol::Linux64 {
            stack: layout::STACK,
            zero_page: layout::BOOT_PARAMETERS,
            page_tables: layout::PAGE_TABLES,
        },
    })
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
    let parameters = BootParams::new(&page, GuestAddress(layout::BOOT_PARAMETERS));
    Ok(LinuxBootConfigurator::write_bootparams(
        &parameters,
        memory,
    )?)
}
