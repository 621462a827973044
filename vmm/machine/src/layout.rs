//! Where everything lies in the guest's physical address space.
//!
//! ```text
//! 0            640 KiB   1 MiB                     3 GiB              4 GiB
//! ├─ boot data ─┼ MP table┼─ RAM ──────────────────┼─ devices ─┬ APICs ┼─ RAM ─ ... ─┼─ memory that can be added ─┼─ files ─>
//! ```
//!
//! The hole below 4 GiB is there in every machine, however small: addresses of devices never move.

/// One byte behind RAM that is below the hole.
pub const HOLE_START: u64 = 3 << 30;
/// Where RAM goes on behind the hole.
pub const HOLE_END: u64 = 4 << 30;

/// Windows of devices, one after the other.
pub const DEVICES: u64 = 0xd000_0000;
/// Bytes of a window.
pub const WINDOW: u64 = isopod_virtio::transport::WINDOW;

/// The I/O APIC, as KVM has it.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Every processor's local APIC, as KVM has it.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// Interrupt lines of devices, in the order of their slots: those that the PIT (0), the keyboard (1),
/// the cascade (2), the serial port (4) and the clock (8) do not have. KVM's I/O APIC has 24.
pub const LINES: [u32; 18] = [
    5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
];

/// Virtual processors at most: what the guest kernel is built for.
pub const MAX_CPUS: u32 = 64;
/// RAM at least, in bytes: a kernel and something to run.
pub const MIN_RAM: u64 = 64 << 20;
/// RAM at most, in bytes.
pub const MAX_RAM: u64 = 512 << 30;

/// Boot data, all below 640 KiB: segment descriptors,
pub(crate) const GDT: u64 = 0x500;
/// what a boot protocol tells: the zero page, or PVH's start information and memory map,
pub(crate) const BOOT_PARAMETERS: u64 = 0x7000;
/// a stack that grows down,
pub(crate) const STACK: u64 = 0x8ff0;
/// page tables that map the first GiB onto itself,
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// the command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Its length at most, with the zero at its end (kernel, `COMMAND_LINE_SIZE`).
pub(crate) const COMMAND_LINE_SIZE: usize = 2048;
/// The MP table, in the last KiB of what a BIOS would have left of base memory: where kernels look.
pub(crate) const MP_TABLE: u64 = 0x9_fc00;
/// Where usable memory begins again.
pub(crate) const HIGH_RAM: u64 = 1 << 20;

/// Files shown to the guest as memory begin at multiples of this: Linux hands out such memory in
/// sections of 128 MiB.
const FILE_ALIGNMENT: u64 = 128 << 20;

/// Where memory that can be added begins: on a border of the largest unit that Linux adds memory in.
const HOTPLUG_ALIGNMENT: u64 = 2 << 30;

/// The place for memory that can be added to `ram` bytes of RAM.
#[must_use]
pub fn hotplug(ram: u64) -> u64 {
    let above = ram.saturating_sub(HOLE_START);
    (HOLE_END + above).next_multiple_of(HOTPLUG_ALIGNMENT)
}

/// RAM as ranges of guest-physical addresses and lengths.
#[must_use]
pub fn ram(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(HOLE_START);
    let high = bytes.saturating_sub(low);
    [(0, low), (HOLE_END, high)]
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .collect()
}

/// The first place for a file behind `end`, the end of what lies above 4 GiB so far. `None`: beyond
/// what the processor can address.
#[must_use]
pub fn file_after(end: u64, address_bits: u32) -> Option<u64> {
    let start = end.max(HOLE_END).checked_next_multiple_of(FILE_ALIGNMENT)?;
    (start < 1u64.checked_shl(address_bits).unwrap_or(u64::MAX)).then_some(start)
}

/// Window and interrupt line of a slot; `None`: there are not so many.
#[must_use]
pub fn slot(index: usize) -> Option<(u64, u32)> {
    let line = LINES.get(index)?;
    Some((DEVICES + index as u64 * WINDOW, *line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(ram(64 << 20), [(0, 64 << 20)]);
        assert_eq!(ram(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ram(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
        let total: u64 = ram(MAX_RAM).iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(total, MAX_RAM);
    }

    #[test]
    fn memory_that_can_be_added_lies_behind_ram() {
        assert_eq!(hotplug(64 << 20), 4 << 30);
        assert_eq!(hotplug(3 << 30), 4 << 30);
        assert_eq!(hotplug((3 << 30) + 1), 6 << 30);
        assert_eq!(hotplug(MAX_RAM), 514 << 30);
    }

    #[test]
    fn slots_lie_in_the_hole_and_share_no_line() {
        let mut lines = std::collections::BTreeSet::new();
        for index in 0..LINES.len() {
            let (window, line) = slot(index).unwrap();
            assert!(window >= HOLE_START && window + WINDOW <= u64::from(IO_APIC));
            assert!(lines.insert(line) && line < 24 && ![0, 1, 2, 4, 8].contains(&line));
        }
        assert_eq!(slot(LINES.len()), None);
    }

    #[test]
    fn files_lie_behind_ram_and_within_reach() {
        assert_eq!(file_after(0, 40), Some(4 << 30));
        assert_eq!(file_after((4 << 30) + 1, 40), Some((4 << 30) + (128 << 20)));
        assert_eq!(file_after(1 << 36, 36), None);
        assert_eq!(file_after(u64::MAX, 52), None);
    }
}
