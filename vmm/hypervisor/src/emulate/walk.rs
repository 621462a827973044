//! The guest's page tables, walked as the processor walks them for supervisor mode (Intel SDM vol. 3,
//! 4.5 and 4.6). `KVM_TRANSLATE` would tell where a page is, but not whether it may be written.

use std::sync::atomic::{AtomicU64, Ordering};

use isopod_memory::{AddressSpace, GuestAddress, GuestMemory, GuestSlice, VolatileMemory};
use kvm_bindings::kvm_sregs;

use super::{Access, Exception, general::AC};

pub(crate) const PAGE: u64 = 4096;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51 of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

const CR0_WP: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMAP: u64 = 1 << 21;

const CAUSED_BY_PROTECTION: u32 = 1;
const CAUSED_BY_WRITE: u32 = 2;

/// Where a virtual address is, if supervisor mode may access it so; `None` is an instruction fetch by
/// KVM's leave, which is not checked again. Sets accessed and dirty bits.
pub(crate) fn translate(
    memory: &GuestMemory,
    system: &kvm_sregs,
    flags: u64,
    address: u64,
    access: Option<Access>,
) -> Result<GuestAddress, Exception> {
    let levels = if system.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    // An address whose upper bits are not all alike is no address (SDM vol. 1, 3.3.7.1).
    let meaningful = 12 + 9 * levels;
    let sign = address.cast_signed() >> (meaningful - 1);
    if sign != 0 && sign != -1 {
        return Err(Exception::PROTECTION);
    }
    let write = access == Some(Access::Write);
    let error = u32::from(write) * CAUSED_BY_WRITE;
    let absent = Exception::page_fault(address, error);
    let protected = Exception::page_fault(address, error | CAUSED_BY_PROTECTION);

    let mut table = system.cr3 & FRAME;
    let mut allowed = WRITABLE | USER;
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let index = address >> shift & 511;
        let entry = Entry::at(memory, table + index * 8).ok_or(absent)?;
        let value = entry.get();
        if value & PRESENT == 0 {
            return Err(absent);
        }
        allowed &= value;
        let last = level == 1 || (value & LARGE != 0 && level <= 3);
        if !last {
            entry.set(ACCESSED);
            table = value & FRAME;
            continue;
        }
        if write && allowed & WRITABLE == 0 && system.cr0 & CR0_WP != 0 {
            return Err(protected);
        }
        // Supervisor mode keeps out of user pages unless it says that it means to.
        let smap = system.cr4 & CR4_SMAP != 0 && flags & AC == 0;
        if access.is_some() && allowed & USER != 0 && smap {
            return Err(protected);
        }
        entry.set(if write { ACCESSED | DIRTY } else { ACCESSED });
        let offset = (1 << shift) - 1;
        return Ok(GuestAddress(value & FRAME & !offset | address & offset));
    }
    Err(absent)
}

/// An entry of a page table, which other processors use at the same time.
struct Entry<'a>(GuestSlice<'a>);

impl<'a> Entry<'a> {
    fn at(memory: &'a GuestMemory, address: u64) -> Option<Self> {
        let slice = memory.get_slice(GuestAddress(address), 8).ok()?;
        Some(Self(slice))
    }

    /// The slice is 8 bytes long and aligned, because tables are pages; else there is no entry.
    fn word(&self) -> Option<&AtomicU64> {
        self.0.get_atomic_ref(0).ok()
    }

    fn get(&self) -> u64 {
        self.word().map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn set(&self, bits: u64) {
        if let Some(word) = self.word()
            && word.load(Ordering::Acquire) & bits != bits
        {
            word.fetch_or(bits, Ordering::AcqRel);
        }
    }
}
