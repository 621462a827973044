//! PVH (Xen, docs/misc/pvh.pandoc; xen/include/public/arch-x86/hvm/start_info.h): 32 bits, no paging, and
//! a structure that tells what the machine is. Of what it can name, this machine has a command line and a
//! memory map: no modules, no ACPI.

use isopod_hypervisor::Protocol;
use linux_loader::{
    configurator::{BootConfigurator, BootParams, pvh::PvhBootConfigurator},
    loader::elf::{
        PvhBootCapability,
        start_info::{hvm_memmap_table_entry, hvm_start_info},
    },
};

use super::{
    BootError, Entry, GuestAddress, GuestMemory, KernelLoaderResult, checked, layout, memory_map,
};

/// "xEn3", the E with its highest bit.
const MAGIC: u32 = 0x336e_c578;
/// The first with a memory map.
const VERSION: u32 = 1;

/// Writes the start information and the memory map behind it.
pub(super) fn load(memory: &GuestMemory, loaded: &KernelLoaderResult) -> Result<Entry, BootError> {
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvh);
    };
    let instruction = checked(entry.0)?;
    let map = memory_map(memory);
    let map: Vec<_> = map
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry {
            addr,
            size,
            type_,
            reserved: 0,
        })
        .collect();
    let start_info = layout::BOOT_PARAMETERS;
    let map_at = start_info + size_of::<hvm_start_info>() as u64;
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: layout::COMMAND_LINE,
        memmap_paddr: map_at,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    let mut parameters = BootParams::new(&info, GuestAddress(start_info));
    parameters.set_sections(&map, GuestAddress(map_at));
    PvhBootConfigurator::write_bootparams(&parameters, memory)?;
    Ok(Entry {
        instruction,
        gdt: layout::GDT,
        protocol: Protocol::Pvh { start_info },
    })
}
