//! A scratch VM that runs a counted loop in supervisor mode, once, against the clock.
//!
//! `/dev/kvm` alone says little: there are KVM modules that run user mode natively and interpret
//! supervisor mode (CPL 0), at a thousandth of the speed. A kernel boots on them, and no pod is fun.
//! No module is named here; the loop tells.

use std::{io, time::Instant};

use isopod_memory::{AddressSpace, Bytes, GuestAddress, GuestMemory};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

/// KVM's one and only stable API (kernel, Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
/// Guest memory: code and page tables.
const MEMORY: usize = 64 << 10;
const CODE: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const PD: u64 = 0x4000;
/// `mov ecx, ROUNDS; again: dec ecx; jnz again; hlt` (the counter is filled in).
const LOOP: [u8; 10] = [0xb9, 0, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4];
const ROUNDS: u32 = 50_000;
/// Two instructions a round, and one on either side.
const INSTRUCTIONS: f64 = 2.0 * ROUNDS as f64 + 2.0;
/// The best of so many runs counts: a busy machine interrupts some.
const RUNS: usize = 3;
/// Interpreters manage a few million instructions a second, the slowest CPU that virtualizes some
/// hundred million.
const HARDWARE: f64 = 50e6;

/// This machine's KVM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hypervisor {
    /// Who runs a guest's kernel.
    pub supervisor: Supervisor,
    /// Measured, at CPL 0.
    pub instructions_per_second: f64,
}

/// Who runs a guest's supervisor mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervisor {
    /// The CPU.
    Hardware,
    /// The host's instruction emulator.
    Emulated,
}

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm: {0}")]
    Open(io::Error),
    /// An ancient or strange KVM.
    #[error("KVM has API version {0}, not 12")]
    ApiVersion(i32),
    /// A step that any KVM can do.
    #[error("{act}: {source}")]
    Act {
        /// What was tried.
        act: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The loop did not come to its `hlt`.
    #[error("the test program ended with {0}")]
    Exit(String),
}

impl Hypervisor {
    /// Runs the loop. Takes a millisecond on hardware, some 200 under emulation.
    pub fn probe() -> Result<Self, ProbeError> {
        let kvm = Kvm::new().map_err(|error| ProbeError::Open(error.into()))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(ProbeError::ApiVersion(version));
        }
        let memory = isopod_memory::anonymous(&[(0, MEMORY)])
            .map_err(|error| failed("making guest memory", io::Error::other(error)))?;
        load(&memory)?;
        let address = memory
            .get_host_address(GuestAddress(0))
            .map_err(|error| failed("finding guest memory", io::Error::other(error)))?;

        let vm = kvm.create_vm().map_err(act("creating a VM"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: address as u64,
        };
        // SAFETY: `address` begins a private mapping of MEMORY bytes that only this function uses, and
        // that outlives `vm`: locals are dropped in reverse order.
        unsafe { vm.set_user_memory_region(region) }.map_err(act("giving it memory"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(act("creating a vCPU"))?;
        enter_long_mode(&vcpu)?;
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            best = best.min(run(&mut vcpu)?);
        }
        Ok(Self::of_speed(INSTRUCTIONS / best))
    }

    fn of_speed(instructions_per_second: f64) -> Self {
        Self {
            supervisor: if instructions_per_second >= HARDWARE {
                Supervisor::Hardware
            } else {
                Supervisor::Emulated
            },
            instructions_per_second,
        }
    }
}

/// Writes the program and page tables that map the first 2 MiB onto themselves.
fn load(memory: &GuestMemory) -> Result<(), ProbeError> {
    let mut program = LOOP;
    if let Some(counter) = program.get_mut(1..5) {
        counter.copy_from_slice(&ROUNDS.to_le_bytes());
    }
    // Present and writable; the last level is a 2 MiB page (Intel SDM vol. 3, 4.5).
    let tables = [(PML4, PDPT | 3), (PDPT, PD | 3), (PD, 1 << 7 | 3)];
    let write = |bytes: &[u8], at| {
        memory
            .write_slice(bytes, GuestAddress(at))
            .map_err(|error| failed("writing guest memory", io::Error::other(error)))
    };
    write(&program, CODE)?;
    for (at, entry) in tables {
        write(&u64::to_le_bytes(entry), at)?;
    }
    Ok(())
}

/// As a kernel runs.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    let mut registers = vcpu.get_sregs().map_err(act("reading registers"))?;
    crate::entry::long_mode(&mut registers, PML4);
    vcpu.set_sregs(&registers)
        .map_err(act("entering long mode"))
}

/// Runs the program once; answers seconds.
fn run(vcpu: &mut VcpuFd) -> Result<f64, ProbeError> {
    let mut registers = vcpu.get_regs().map_err(act("reading registers"))?;
    registers.rip = CODE;
    // The reserved bit alone: no interrupts.
    registers.rflags = 2;
    vcpu.set_regs(&registers)
        .map_err(act("setting registers"))?;
    let begin = Instant::now();
    match vcpu.run().map_err(act("running"))? {
        VcpuExit::Hlt => Ok(begin.elapsed().as_secs_f64()),
        other => Err(ProbeError::Exit(format!("{other:?}"))),
    }
}

fn act(act: &'static str) -> impl Fn(kvm_ioctls::Error) -> ProbeError {
    move |error| failed(act, error.into())
}

fn failed(act: &'static str, source: io::Error) -> ProbeError {
    ProbeError::Act { act, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds() {
        for (speed, expected) in [
            (1.75e6, Supervisor::Emulated),
            (20e6, Supervisor::Emulated),
            (3.6e9, Supervisor::Hardware),
            (200e6, Supervisor::Hardware),
        ] {
            assert_eq!(Hypervisor::of_speed(speed).supervisor, expected, "{speed}");
        }
    }

    #[test]
    fn the_probe_ends_with_an_answer() {
        // Whatever this machine has: an answer, or a reason that is one.
        match Hypervisor::probe() {
            Ok(found) => assert!(found.instructions_per_second > 1e4, "{found:?}"),
            Err(ProbeError::Open(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
