//! Memory that the kernel did not find at boot: blocks of `memory/block_size_bytes`, of which block N begins
//! at N times that. `memory/probe` takes the address of one that the kernel does not know;
//! `memory/memoryN/state` says whether one is in use, and changes it
//! (Documentation/admin-guide/mm/memory-hotplug.rst).
//!
//! A block comes out of use when its pages have been moved elsewhere. That takes free memory, and does not
//! end while there is none: so it is looked at first, and interrupted at last.

use std::{ops::Range, path::PathBuf, time::Instant};

use isopod_protocol::{agent::MemoryRange, limits};

use super::{SizeError, System, read, write};

/// What must be free beside what a block's pages may need.
const RESERVE: u64 = 32 << 20;
const ONLINE: &str = "online";

/// Numbers of blocks.
type Blocks = Range<u64>;

/// As blocks, if they are whole ones.
pub(super) fn ranges(ranges: &[MemoryRange], system: &System) -> Result<Vec<Blocks>, SizeError> {
    if ranges.len() > limits::MEMORY_RANGES {
        let why = format!("memory: {} ranges", ranges.len());
        return Err(SizeError::Request(why));
    }
    if ranges.is_empty() {
        return Ok(Vec::new());
    }
    let block = system.block_size()?;
    let blocks = ranges.iter().map(|range| {
        let MemoryRange { start, bytes, .. } = *range;
        let end = start.checked_add(bytes)?;
        let whole = start.is_multiple_of(block) && bytes.is_multiple_of(block);
        whole.then_some(start / block..end / block)
    });
    blocks
        .zip(ranges)
        .map(|(blocks, range)| {
            blocks.ok_or_else(|| {
                let MemoryRange { start, bytes, .. } = range;
                SizeError::Request(format!(
                    "memory: {bytes} bytes at {start:#x} are not whole blocks of {block}"
                ))
            })
        })
        .collect()
}

impl System {
    fn block_size(&self) -> Result<u64, SizeError> {
        let path = self.memory.join("block_size_bytes");
        let text = read(&path)?;
        let size = u64::from_str_radix(text.trim(), 16).ok();
        size.filter(|size| *size != 0)
            .ok_or(SizeError::Text { path, text })
    }

    fn state(&self, block: u64) -> PathBuf {
        self.memory.join(format!("memory{block}/state"))
    }

    fn is_online(&self, block: u64) -> bool {
        read(&self.state(block)).is_ok_and(|state| state.trim() == ONLINE)
    }

    /// Takes blocks into use.
    pub(super) fn use_memory(&self, blocks: Blocks) -> Result<(), SizeError> {
        for block in blocks {
            let state = self.state(block);
            if !state.exists() {
                let start = block.saturating_mul(self.block_size()?);
                write(&self.memory.join("probe"), &format!("{start:#x}"))?;
            }
            // What the kernel has just found may be in use by itself (`memhp_default_state`).
            if !self.is_online(block) {
                write(&state, ONLINE)?;
            }
        }
        Ok(())
    }

    /// Takes blocks out of use, the highest first. Tells what ended it, or else what the kernel keeps.
    pub(super) fn leave_memory(&self, blocks: Blocks, until: Instant) -> Result<(), String> {
        let mut kept = Ok(());
        for block in blocks.rev() {
            if !self.is_online(block) {
                continue;
            }
            if Instant::now() >= until {
                return Err(format!("time is up at block {block}"));
            }
            let act = || Ok((self.block_size()?, self.available()?));
            let (needed, free) = act().map_err(|error: SizeError| error.to_string())?;
            if free < needed.saturating_add(RESERVE) {
                let free = free >> 20;
                return Err(format!("only {free} MiB are free at block {block}"));
            }
            // Of what exceeds the share that the kernel makes movable it may use pages itself: others
            // can go all the same.
            if let Err(error) = write(&self.state(block), "offline") {
                kept = kept.and(Err(error.to_string()));
            }
        }
        kept
    }

    /// Bytes that programs could have without anything being swapped or killed.
    fn available(&self) -> Result<u64, SizeError> {
        let text = read(&self.meminfo)?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line
            .and_then(|line| line.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse::<u64>().ok());
        match kib {
            Some(kib) => Ok(kib.saturating_mul(1 << 10)),
            None => Err(SizeError::Text {
                path: self.meminfo.clone(),
                text: "no MemAvailable".to_owned(),
            }),
        }
    }

    /// Bytes of these that are in use.
    pub(super) fn in_use(&self, blocks: Blocks) -> u64 {
        let online = blocks.filter(|block| self.is_online(*block)).count();
        let online = u64::try_from(online).unwrap_or(u64::MAX);
        self.block_size().unwrap_or(0).saturating_mul(online)
    }
}
