//! Memory that QEMU's machine has and its guest does not know of.
//!
//! The machine `microvm` has neither hotplug nor a place for virtio-mem. So it gets all of its memory at
//! once, which costs the host nothing before it is touched; the guest's kernel is told to end at what it
//! boots with (`mem=`), and the agent names it the rest, block by block
//! (`/sys/devices/system/memory/probe`). A kernel that was taken over can therefore use all of it, and all
//! processors, which run from the boot on: bounds that hold against the guest are `kvm`'s alone.
//!
//! ```text
//!   offset   0 ────── boot ┄┄ spare ──────────────────── total      of QEMU's memory
//!   address  0 ────── mem= ┄┄ ──────── 3 GiB   4 GiB ────           of the guest
//! ```

use std::ops::Range;

use async_trait::async_trait;
use isopod_config::VmConfig;

use crate::engine::{EngineError, Lent, MEMORY_BLOCK_MIB, Spare};

const MIB: u64 = 1 << 20;
/// Memory from this offset on is found at [`HIGH`] (QEMU 7.2, hw/i386/microvm.c).
const LOW_MIB: u64 = 3 << 10;
const HIGH_MIB: u64 = 4 << 10;

/// Where the memory of a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpareMemory {
    boot_mib: u64,
    /// Where what is spare begins: at a block's beginning.
    offset_mib: u64,
    /// How much there is: whole blocks.
    mib: u64,
}

impl SpareMemory {
    pub fn of(vm: &VmConfig) -> Self {
        let boot_mib = vm.memory.size_mib;
        let spare = vm.spare_memory_mib;
        Self {
            boot_mib,
            offset_mib: boot_mib.next_multiple_of(MEMORY_BLOCK_MIB),
            mib: spare - spare % MEMORY_BLOCK_MIB,
        }
    }

    /// What QEMU is to have, in MiB.
    pub fn total_mib(self) -> u64 {
        match self.mib {
            0 => self.boot_mib,
            spare => self.offset_mib + spare,
        }
    }

    /// The kernel's parameter, if it must not see all.
    pub fn parameter(self) -> Option<String> {
        let end = match self.boot_mib {
            low @ ..=LOW_MIB => low,
            high => high + (HIGH_MIB - LOW_MIB),
        };
        (self.mib > 0).then(|| format!("mem={end}M"))
    }

    /// Addresses of the memory between two offsets, each in MiB.
    fn addresses(offsets: Range<u64>) -> Vec<Range<u64>> {
        let Range { start, end } = offsets;
        let low = start.min(LOW_MIB)..end.min(LOW_MIB);
        let high = start.max(LOW_MIB)..end.max(LOW_MIB);
        let moved = HIGH_MIB - LOW_MIB;
        [low, high.start + moved..high.end + moved]
            .into_iter()
            .filter(|range| !range.is_empty())
            .map(|range| range.start * MIB..range.end * MIB)
            .collect()
    }
}

#[async_trait]
impl Spare for SpareMemory {
    fn memory_mib(&self) -> u64 {
        self.mib
    }

    async fn lend(&self, mib: u64) -> Result<Lent, EngineError> {
        if mib > self.mib {
            let why = format!("it has {} MiB to spare", self.mib);
            return Err(EngineError::Memory { mib, why });
        }
        let end = self.offset_mib + mib.next_multiple_of(MEMORY_BLOCK_MIB);
        Ok(Lent {
            used: Self::addresses(self.offset_mib..end),
            unused: Self::addresses(end..self.total_mib().max(end)),
        })
    }

    async fn grant(&self, _cpus: u32) -> Result<(), EngineError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn spare(boot_mib: u64, mib: u64) -> SpareMemory {
        SpareMemory {
            boot_mib,
            offset_mib: boot_mib.next_multiple_of(MEMORY_BLOCK_MIB),
            mib: mib - mib % MEMORY_BLOCK_MIB,
        }
    }

    #[rstest]
    #[case::none(514, 0, 514, None)]
    #[case::less_than_a_block(514, 127, 514, None)]
    #[case::from_a_block(514, 300, 640 + 256, Some("mem=514M"))]
    #[case::below_the_hole(3072, 1024, 4096, Some("mem=3072M"))]
    #[case::above_the_hole(4096, 1024, 5120, Some("mem=5120M"))]
    fn the_guest_boots_with_a_part(
        #[case] boot: u64,
        #[case] more: u64,
        #[case] total: u64,
        #[case] parameter: Option<&str>,
    ) {
        let spare = spare(boot, more);
        assert_eq!(spare.total_mib(), total);
        assert_eq!(spare.parameter().as_deref(), parameter);
    }

    #[tokio::test]
    async fn what_is_lent_has_addresses() {
        let spare = spare(2048, 2048);
        let none = spare.lend(0).await.unwrap();
        assert_eq!(none.used, []);
        assert_eq!(none.unused, [2 * GIB..3 * GIB, 4 * GIB..5 * GIB]);
        let some = spare.lend(1025).await.unwrap();
        let part = 4 * GIB..4 * GIB + 128 * MIB;
        assert_eq!(some.used, [2 * GIB..3 * GIB, part.clone()]);
        let rest = part.end..5 * GIB;
        assert_eq!(some.unused, [rest]);
        let all = spare.lend(2048).await.unwrap();
        assert_eq!((all.used, all.unused), (none.unused, none.used));
        let error = spare.lend(2049).await.unwrap_err().to_string();
        assert!(
            error.contains("2049") && error.contains("2048 MiB to spare"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_used_twice(boot in 64u64..9000, more in 0u64..9000, part in 0u64..9000) {
            let spare = spare(boot, more);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let lent = runtime.block_on(spare.lend(part.min(spare.mib))).unwrap();
            let mut ranges = [lent.used, lent.unused].concat();
            ranges.sort_by_key(|range| range.start);
            let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            prop_assert_eq!(bytes, spare.mib * MIB);
            prop_assert!(ranges.is_sorted_by(|one, next| one.end <= next.start));
            for range in ranges {
                prop_assert!(range.end <= 3 * GIB || range.start >= 4 * GIB);
                prop_assert_eq!((range.start | range.end) % (MEMORY_BLOCK_MIB * MIB), 0);
            }
        }
    }
}
