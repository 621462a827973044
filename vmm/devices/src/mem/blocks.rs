//! Which blocks of the region are plugged: pure arithmetic on a bitmap.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A region of equal blocks, each plugged or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {
    /// Guest-physical address of the first.
    pub start: u64,
    /// Bytes of each.
    pub block: u64,
    /// How many there are.
    pub count: u64,
    /// A bit for each, the first the lowest; as many words as needed.
    plugged: Vec<u64>,
}

/// What a range of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugged {
    /// Every block.
    All,
    /// No block.
    None,
    /// Some.
    Some,
}

impl Blocks {
    pub fn new(start: u64, block: u64, count: u64) -> Self {
        Self {
            start,
            block,
            count,
            plugged: vec![0; count.div_ceil(64) as usize],
        }
    }

    /// The region's length in bytes.
    pub fn bytes(&self) -> u64 {
        self.count * self.block
    }

    /// The blocks from an address on, if there are so many.
    pub fn range(&self, address: u64, blocks: u16) -> Option<Range<u64>> {
        let offset = address.checked_sub(self.start)?;
        let first = offset / self.block;
        let end = first.checked_add(blocks.into())?;
        let inside = offset.is_multiple_of(self.block) && blocks > 0 && end <= self.count;
        inside.then_some(first..end)
    }

    pub fn state(&self, range: Range<u64>) -> Plugged {
        let mut seen = range.map(|block| self.is_plugged(block));
        let first = seen.next().unwrap_or(false);
        match (first, seen.all(|plugged| plugged == first)) {
            (true, true) => Plugged::All,
            (false, true) => Plugged::None,
            (_, false) => Plugged::Some,
        }
    }

    pub fn set(&mut self, range: Range<u64>, plugged: bool) {
        for block in range {
            let bit = 1 << (block % 64);
            match self.plugged.get_mut((block / 64) as usize) {
                Some(word) if plugged => *word |= bit,
                Some(word) => *word &= !bit,
                None => {}
            }
        }
    }

    /// How much is plugged, in bytes.
    pub fn plugged_bytes(&self) -> u64 {
        let blocks: u64 = self.plugged.iter().map(|w| u64::from(w.count_ones())).sum();
        blocks * self.block
    }

    /// Every run of plugged blocks.
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in (0..self.count).filter(|block| self.is_plugged(*block)) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                Some(_) | None => runs.push(block..block + 1),
            }
        }
        runs
    }

    /// Guest-physical addresses of blocks.
    pub fn addresses(&self, blocks: &Range<u64>) -> Range<u64> {
        self.start + blocks.start * self.block..self.start + blocks.end * self.block
    }

    /// Whether the same region, whatever is plugged, and nothing outside of it.
    pub fn is_same_region(&self, other: &Self) -> bool {
        let shape = |b: &Self| (b.start, b.block, b.count, b.plugged.len());
        let beyond = match (other.plugged.last(), self.count % 64) {
            (Some(word), used) if used > 0 => word >> used,
            _ => 0,
        };
        shape(self) == shape(other) && beyond == 0
    }

    fn is_plugged(&self, block: u64) -> bool {
        let word = self.plugged.get((block / 64) as usize);
        word.is_some_and(|word| word & (1 << (block % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 2 << 20;
    const START: u64 = 8 << 30;

    #[test]
    fn a_range_must_be_of_the_region() {
        let blocks = Blocks::new(START, BLOCK, 100);
        assert_eq!(blocks.range(START, 100), Some(0..100));
        assert_eq!(blocks.range(START + 99 * BLOCK, 1), Some(99..100));
        for (address, count) in [
            (START, 0),
            (START, 101),
            (START + 99 * BLOCK, 2),
            (START + 4096, 1),
            (START - BLOCK, 1),
            (0, 1),
            (u64::MAX - BLOCK + 1, 2),
        ] {
            assert_eq!(blocks.range(address, count), None, "{address:#x} {count}");
        }
    }

    proptest! {
        #[test]
        fn the_bitmap_is_what_a_list_would_be(
            acts in proptest::collection::vec((0u64..200, 1u64..80, any::<bool>()), 0..30)
        ) {
            let mut blocks = Blocks::new(START, BLOCK, 200);
            let mut list = [false; 200];
            for (first, count, plugged) in acts {
                let range = first..(first + count).min(200);
                blocks.set(range.clone(), plugged);
                list[range.start as usize..range.end as usize].fill(plugged);
                let part = &list[range.start as usize..range.end as usize];
                prop_assert_eq!(blocks.state(range) == Plugged::All, part.iter().all(|p| *p));
            }
            let plugged = list.iter().filter(|p| **p).count() as u64;
            prop_assert_eq!(blocks.plugged_bytes(), plugged * BLOCK);
            let runs: u64 = blocks.runs().iter().map(|r| r.end - r.start).sum();
            prop_assert_eq!(runs, plugged);
            prop_assert!(blocks.runs().windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }

    #[test]
    fn a_saved_region_with_bits_outside_is_another() {
        let blocks = Blocks::new(START, BLOCK, 100);
        let mut other = blocks.clone();
        other.set(0..100, true);
        assert!(blocks.is_same_region(&other));
        *other.plugged.last_mut().unwrap() |= 1 << 40;
        assert!(!blocks.is_same_region(&other));
        assert!(!blocks.is_same_region(&Blocks::new(START, BLOCK, 101)));
    }
}
