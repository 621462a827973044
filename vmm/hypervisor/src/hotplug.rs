//! Memory that a guest gets and loses while it runs (virtio-mem).
//!
//! A guest sees it in chunks: a chunk is a memory slot of KVM for as long as any block in it is plugged.
//! So a guest that touches what it was not given gets no more than the rest of a chunk, whatever the
//! device that it should have asked; and memory that is not plugged costs the host no tables for it.

use std::{ops::Range, sync::Arc};

use isopod_memory::{AddressSpace, GuestAddress, GuestMemory, contains};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use crate::{HypervisorError, error::kvm};

/// Bytes of a chunk: what Linux adds at a time.
pub const CHUNK: u64 = 128 << 20;

/// A region, by chunks.
pub struct HotplugMemory {
    vm: Arc<VmFd>,
    // Keeps mapped what the slots show.
    memory: GuestMemory,
    start: u64,
    first_slot: u32,
    /// Plugged bytes of each chunk.
    plugged: Vec<u64>,
}

impl HotplugMemory {
    pub(crate) fn chunks(bytes: u64) -> u64 {
        bytes.div_ceil(CHUNK)
    }

    pub(crate) fn new(
        vm: Arc<VmFd>,
        memory: GuestMemory,
        start: u64,
        bytes: u64,
        first_slot: u32,
    ) -> Result<Self, HypervisorError> {
        // Each slot is one range of this process's addresses.
        let one = memory.find_region(GuestAddress(start)).is_some()
            && start.is_multiple_of(CHUNK)
            && bytes.is_multiple_of(CHUNK)
            && contains(&memory, GuestAddress(start), bytes);
        let chunks = usize::try_from(Self::chunks(bytes)).ok().filter(|_| one);
        let chunks = chunks.ok_or(HypervisorError::FindMemory { address: start })?;
        Ok(Self {
            vm,
            memory,
            start,
            first_slot,
            plugged: vec![0; chunks],
        })
    }

    /// Lets the guest see `range`, of which it has seen nothing yet.
    ///
    /// # Errors
    /// It is not of the region, or KVM refuses; then the guest sees nothing of it.
    pub fn plug(&mut self, range: Range<u64>) -> Result<(), HypervisorError> {
        let parts = self.parts(&range)?;
        for (done, (chunk, bytes)) in parts.iter().enumerate() {
            let before = self.plugged.get(*chunk).copied().unwrap_or(0);
            if before == 0
                && let Err(error) = self.show(*chunk, true)
            {
                for (chunk, bytes) in parts.iter().take(done) {
                    self.take_away(*chunk, *bytes);
                }
                return Err(error);
            }
            if let Some(plugged) = self.plugged.get_mut(*chunk) {
                *plugged += bytes;
            }
        }
        Ok(())
    }

    /// Takes `range`, all of which was plugged, away from the guest.
    ///
    /// # Errors
    /// It is not of the region.
    pub fn unplug(&mut self, range: Range<u64>) -> Result<(), HypervisorError> {
        for (chunk, bytes) in self.parts(&range)? {
            self.take_away(chunk, bytes);
        }
        Ok(())
    }

    fn take_away(&mut self, chunk: usize, bytes: u64) {
        let Some(plugged) = self.plugged.get_mut(chunk) else {
            return;
        };
        *plugged = plugged.saturating_sub(bytes);
        if *plugged == 0 {
            // A slot that exists can always be removed.
            let _ = self.show(chunk, false);
        }
    }

    /// The chunks of a range, and how many of its bytes are in each.
    fn parts(&self, range: &Range<u64>) -> Result<Vec<(usize, u64)>, HypervisorError> {
        let outside = || HypervisorError::FindMemory {
            address: range.start,
        };
        let end = self.start + self.plugged.len() as u64 * CHUNK;
        if range.start < self.start || range.end > end || range.start >= range.end {
            return Err(outside());
        }
        let (from, to) = (range.start - self.start, range.end - self.start);
        let part = |chunk: u64| {
            let bytes = to.min((chunk + 1) * CHUNK) - from.max(chunk * CHUNK);
            Ok((usize::try_from(chunk).map_err(|_| outside())?, bytes))
        };
        (from / CHUNK..to.div_ceil(CHUNK)).map(part).collect()
    }

    fn show(&self, chunk: usize, there: bool) -> Result<(), HypervisorError> {
        let address = self.start + chunk as u64 * CHUNK;
        let host = self.memory.get_host_address(GuestAddress(address));
        let host = host.map_err(|_| HypervisorError::FindMemory { address })?;
        let slot = kvm_userspace_memory_region {
            slot: self.first_slot + chunk as u32,
            flags: 0,
            guest_phys_addr: address,
            // No length removes a slot.
            memory_size: if there { CHUNK } else { 0 },
            userspace_addr: host as u64,
        };
        // SAFETY: the chunk is a part of `memory`, which is one mapping there and is kept by the VM's
        // vCPUs and by this value; a slot that outlives both has no vCPU that could reach it. No Rust
        // reference to its bytes is ever made (see `isopod_memory`).
        unsafe { self.vm.set_user_memory_region(slot) }
            .map_err(kvm("give the guest memory, or take it away"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vm;

    const START: u64 = 4 << 30;

    fn hotplug() -> Option<HotplugMemory> {
        let Ok(device) = Vm::open_device() else {
            eprintln!("not tested: no /dev/kvm");
            return None;
        };
        let vm = Vm::new(device).unwrap();
        let boot = isopod_memory::anonymous(&[(0, 64 << 20)]).unwrap();
        let all = isopod_memory::anonymous(&[(0, 64 << 20), (START, 3 * CHUNK as usize)]).unwrap();
        vm.set_memory(&boot).unwrap();
        assert!(
            vm.hotplug(&all, START, 4 * CHUNK).is_err(),
            "beyond its end"
        );
        assert!(vm.hotplug(&all, START + 4096, CHUNK).is_err());
        Some(vm.hotplug(&all, START, 3 * CHUNK).unwrap())
    }

    #[test]
    fn a_chunk_is_there_while_anything_in_it_is_plugged() {
        let Some(mut memory) = hotplug() else { return };
        let block = 2 << 20;
        let at = |n: u64| START + CHUNK - block + n * block;
        memory.plug(at(0)..at(2)).unwrap();
        assert_eq!(memory.plugged, [block, block, 0]);
        memory.plug(at(2)..at(3)).unwrap();
        memory.unplug(at(0)..at(2)).unwrap();
        assert_eq!(memory.plugged, [0, block, 0]);
        // A slot that is there cannot be made again, and one that is gone can.
        assert!(memory.show(0, true).is_ok());
        memory.unplug(at(2)..at(3)).unwrap();
        assert_eq!(memory.plugged, [0, 0, 0]);
    }

    #[test]
    fn what_is_not_of_the_region_is_refused() {
        let Some(mut memory) = hotplug() else { return };
        let end = START + 3 * CHUNK;
        for range in [
            0..4096,
            START - 1..START + 1,
            end - 1..end + 1,
            START..START,
        ] {
            assert!(memory.plug(range.clone()).is_err(), "{range:?}");
            assert!(memory.unplug(range).is_err());
        }
        assert_eq!(memory.plugged, [0, 0, 0]);
    }
}
