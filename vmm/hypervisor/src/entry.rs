//! 64-bit supervisor mode with paging and flat segments: how a kernel is entered.

use kvm_bindings::{kvm_segment, kvm_sregs};

/// Of the code segment, in a table that begins with two null descriptors.
const CODE: u16 = 2 << 3;
/// Of the data segments.
const DATA: u16 = 3 << 3;

/// Puts a processor into it, with the given top level page table.
pub(crate) fn enter(system: &mut kvm_sregs, page_tables: u64) {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE,
        // Execute, read, accessed.
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment {
        selector: DATA,
        // Read, write, accessed.
        type_: 3,
        db: 1,
        l: 0,
        ..code
    };
    system.cs = code;
    for segment in [
        &mut system.ds,
        &mut system.es,
        &mut system.fs,
        &mut system.gs,
        &mut system.ss,
    ] {
        *segment = data;
    }
    system.cr3 = page_tables;
    // PAE; PE, ET and PG; LME and LMA.
    system.cr4 = 1 << 5;
    system.cr0 = 1 | 1 << 4 | 1 << 31;
    system.efer = 1 << 8 | 1 << 10;
}
