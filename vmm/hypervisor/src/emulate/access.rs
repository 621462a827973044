//! What an instruction reads and writes: itself, and its operands in the guest's memory, through the
//! guest's own page tables.

use iced_x86::{Instruction, OpKind, Register};
use isopod_memory::{AddressSpace, Bytes, GuestAddress};

use super::{Cpu, Exception, Halt, LONGEST, walk};

/// Whether an access writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Cpu<'_> {
    /// Reads as much of an instruction as is there.
    pub(super) fn fetch(&self, rip: u64, bytes: &mut [u8; LONGEST]) -> usize {
        let mut done = 0;
        for (at, byte) in bytes.iter_mut().enumerate() {
            let address = rip.wrapping_add(at as u64);
            let mut one = [0];
            if walk::translate(
                self.memory,
                &self.system,
                self.general.rflags,
                address,
                None,
            )
            .ok()
            .and_then(|physical| self.memory.read_slice(&mut one, physical).ok())
            .is_none()
            {
                break;
            }
            *byte = one[0];
            done = at + 1;
        }
        done
    }

    /// The virtual address of the memory operand.
    pub(super) fn address(&self, instruction: &Instruction) -> Result<u64, Halt> {
        let operand = (0..instruction.op_count())
            .find(|operand| instruction.op_kind(*operand) == OpKind::Memory);
        operand
            .and_then(|operand| {
                instruction.virtual_address(operand, 0, |register, _, _| {
                    Some(match register {
                        Register::FS => self.system.fs.base,
                        Register::GS => self.system.gs.base,
                        // Bases of the other segments are zero in 64-bit mode.
                        _ if register.is_segment_register() => 0,
                        _ => self.register(register),
                    })
                })
            })
            .ok_or(Halt::Fault(Exception::UNDEFINED))
    }

    /// Reads guest memory by virtual address.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Halt> {
        let mut rest = bytes;
        let mut address = address;
        while !rest.is_empty() {
            let (piece, physical) = self.piece(address, rest.len(), Access::Read)?;
            let (now, later) = rest.split_at_mut(piece);
            self.memory
                .read_slice(now, physical)
                .map_err(|_| Exception::PROTECTION)?;
            rest = later;
            address = address.wrapping_add(piece as u64);
        }
        Ok(())
    }

    /// Writes guest memory by virtual address: all of it, or nothing if any page refuses.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Halt> {
        let mut at = address;
        let mut left = bytes.len();
        while left > 0 {
            let (piece, _) = self.piece(at, left, Access::Write)?;
            at = at.wrapping_add(piece as u64);
            left -= piece;
        }
        let mut rest = bytes;
        let mut at = address;
        while !rest.is_empty() {
            let (piece, physical) = self.piece(at, rest.len(), Access::Write)?;
            let (now, later) = rest.split_at(piece);
            self.memory
                .write_slice(now, physical)
                .map_err(|_| Exception::PROTECTION)?;
            rest = later;
            at = at.wrapping_add(piece as u64);
        }
        Ok(())
    }

    /// The bytes at `address` that lie on one page, at most `wanted`, and where they are.
    fn piece(
        &self,
        address: u64,
        wanted: usize,
        access: Access,
    ) -> Result<(usize, GuestAddress), Halt> {
        let flags = self.general.rflags;
        let physical = walk::translate(self.memory, &self.system, flags, address, Some(access))?;
        let on_page = (walk::PAGE - (address & (walk::PAGE - 1))) as usize;
        Ok((on_page.min(wanted), physical))
    }

    /// Where 16 aligned bytes of guest memory are in this process, if they may be written.
    pub(super) fn host_address(&self, address: u64) -> Result<*mut u8, Halt> {
        let (_, physical) = self.piece(address, 16, Access::Write)?;
        let inside = isopod_memory::contains(self.memory, physical, 16);
        self.memory
            .get_host_address(physical)
            .ok()
            .filter(|_| inside)
            .ok_or(Halt::Fault(Exception::PROTECTION))
    }
}
