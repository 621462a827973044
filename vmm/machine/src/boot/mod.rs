//! Loading an uncompressed kernel and entering it by one of two protocols.
//!
//! | protocol | who chooses it |
//! |---|---|
//! | [`BootProtocol::Linux64`] | the default: Linux gets where its 64-bit code begins in no instruction |
//! | [`BootProtocol::Pvh`] | whoever boots a kernel that has no other way in; Linux offers it too, and makes its own way to 64 bits, which costs instructions and gives nothing |
//!
//! The file is parsed inside the jail.

mod linux64;
mod pvh;

use std::fs::File;

use isopod_hypervisor::Entry;
use isopod_memory::{
    AddressSpace, Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion,
};
use linux_loader::loader::{Elf, KernelLoader, KernelLoaderResult};

use crate::{layout, mp_table};

/// Of the memory map, in both protocols.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootProtocol {
    /// In 64-bit mode at the ELF file's entry (kernel, Documentation/arch/x86/boot.rst).
    #[default]
    Linux64,
    /// In 32-bit mode at the address in the ELF note `XEN_ELFNOTE_PHYS32_ENTRY` (Xen,
    /// docs/misc/pvh.pandoc).
    Pvh,
}

/// A kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It is not an uncompressed kernel, or does not fit.
    #[error("load the kernel: {0}")]
    Kernel(String),
    /// Its first instruction is where no page table leads.
    #[error("the kernel's entry {0:#x} is not between 1 MiB and 1 GiB")]
    Entry(u64),
    /// It has no such entry.
    #[error("the kernel offers no PVH entry (the ELF note XEN_ELFNOTE_PHYS32_ENTRY): CONFIG_PVH")]
    NoPvh,
    /// Boot data does not fit into memory.
    #[error("write boot data: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The zero page, or PVH's start information.
    #[error("write boot parameters: {0}")]
    Parameters(#[from] linux_loader::configurator::Error),
}

/// Puts kernel, command line and tables into memory and says where to enter.
pub(crate) fn load(
    memory: &GuestMemory,
    kernel: &mut File,
    protocol: BootProtocol,
    command_line: &str,
    cpus: u32,
) -> Result<Entry, BootError> {
    let high = GuestAddress(layout::HIGH_RAM);
    let loaded = Elf::load(memory, None, kernel, Some(high))
        .map_err(|error| BootError::Kernel(error.to_string()))?;
    let mut line = command_line.as_bytes().to_vec();
    line.push(0);
    memory.write_slice(&line, GuestAddress(layout::COMMAND_LINE))?;
    mp_table::write(memory, cpus)?;
    let entry = match protocol {
        BootProtocol::Linux64 => linux64::load(memory, &loaded, line.len() as u32)?,
        BootProtocol::Pvh => pvh::load(memory, &loaded)?,
    };
    for (index, descriptor) in entry.descriptors().into_iter().enumerate() {
        let at = GuestAddress(layout::GDT + 8 * index as u64);
        memory.write_obj(descriptor, at)?;
    }
    Ok(entry)
}

/// An entry must be in memory that is mapped, above what boot data lies in.
fn checked(instruction: u64) -> Result<u64, BootError> {
    match (layout::HIGH_RAM..linux64::MAPPED).contains(&instruction) {
        true => Ok(instruction),
        false => Err(BootError::Entry(instruction)),
    }
}

/// What the guest may use, and what it may not: addresses, lengths and kinds.
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::MP_TABLE, RAM),
        (
            layout::MP_TABLE,
            layout::HIGH_RAM - layout::MP_TABLE,
            RESERVED,
        ),
    ];
    for region in memory.iter() {
        let (start, bytes) = (region.start_addr().0, region.len());
        let skipped = layout::HIGH_RAM.saturating_sub(start);
        map.push((start + skipped, bytes.saturating_sub(skipped), RAM));
    }
    map
}

#[cfg(test)]
mod tests;
