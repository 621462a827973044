//! Model-specific registers: what a processor begins with.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::{HypervisorError, error::kvm};

/// A register's value at the start, and why it is not what KVM begins with.
struct Initial {
    index: u32,
    value: u64,
    #[expect(dead_code, reason = "for the reader of the table")]
    reason: &'static str,
}

/// Intel SDM vol. 4; AMD APM vol. 2, appendix A.
const INITIAL: [Initial; 2] = [
    Initial {
        index: 0x1a0,
        value: 1,
        reason: "IA32_MISC_ENABLE, fast strings: firmware turns them on, and there is none",
    },
    Initial {
        index: 0x2ff,
        value: 1 << 11 | 6,
        reason: "IA32_MTRR_DEF_TYPE, enabled and write-back: the same; a guest that finds the MTRRs \
                 off takes its page attribute table for unusable",
    },
];

/// Writes the initial values.
pub(crate) fn initialise(vcpu: &VcpuFd) -> Result<(), HypervisorError> {
    let entries = INITIAL.map(|initial| kvm_msr_entry {
        index: initial.index,
        data: initial.value,
        ..kvm_msr_entry::default()
    });
    write(vcpu, &entries)
}

/// Writes registers, in order.
pub(crate) fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), HypervisorError> {
    let msrs = Msrs::from_entries(entries).map_err(|_| HypervisorError::TooMany {
        what: "MSRs",
        count: entries.len(),
    })?;
    let written = vcpu.set_msrs(&msrs).map_err(kvm("set MSRs"))?;
    match entries.get(written) {
        None => Ok(()),
        Some(refused) => Err(HypervisorError::Msr {
            index: refused.index,
        }),
    }
}

/// Reads one register.
pub(crate) fn read(vcpu: &VcpuFd, index: u32) -> Result<u64, HypervisorError> {
    let entry = kvm_msr_entry {
        index,
        ..kvm_msr_entry::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| HypervisorError::Msr { index })?;
    let count = vcpu.get_msrs(&mut msrs).map_err(kvm("read an MSR"))?;
    match msrs.as_slice().first() {
        Some(entry) if count == 1 => Ok(entry.data),
        _ => Err(HypervisorError::Msr { index }),
    }
}
