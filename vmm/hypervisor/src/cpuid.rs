//! What a guest is told about its processor.
//!
//! The base is what KVM supports on this host (`KVM_GET_SUPPORTED_CPUID`); [`POLICY`] says what is taken
//! away and added, with reasons; the rest of this module numbers the processors, because KVM answers for
//! the processor that asked.
//!
//! Sources: Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E; kernel,
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::HypervisorError;

/// A register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What to do with it.
#[derive(Clone, Copy, Debug)]
enum Act {
    Set(u32),
    Clear(u32),
}

/// One line of the policy.
#[derive(Clone, Copy, Debug)]
struct Rule {
    leaf: u32,
    register: Register,
    act: Act,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader of the table"))]
    reason: &'static str,
}

const fn clear(leaf: u32, register: Register, bits: u32, reason: &'static str) -> Rule {
    Rule {
        leaf,
        register,
        act: Act::Clear(bits),
        reason,
    }
}

const ALL: u32 = u32::MAX;
const PMU: &str = "performance counters tell a guest about its neighbours on the processor";
const POWER: &str = "temperature and power of the host are the host's business";
const NESTED: &str = "a guest hypervisor doubles what a guest can attack; no pod needs one";
const HYPERCALLS: &str = "an interpreted kernel stays at a hypercall for ever: KVM rewrites the instruction and \
    takes it anew; and what is asked for there, APICs do as well";
const AMX: &str = "8 KiB more of state per thread, which the saved format has no room for";

/// What is changed for every processor alike. Applied to every subleaf.
const POLICY: &[Rule] = &[
    Rule {
        leaf: 1,
        register: Register::Ecx,
        act: Act::Set(1 << 31),
        reason: "says that there is a hypervisor: KVM's own leaves are looked for only then",
    },
    clear(
        1,
        Register::Ecx,
        1 << 2 | 1 << 4,
        "debug store: see the PMU",
    ),
    clear(
        1,
        Register::Ecx,
        1 << 3,
        "MONITOR would keep a host processor from its other work",
    ),
    clear(1, Register::Ecx, 1 << 5, NESTED),
    clear(1, Register::Ecx, 1 << 7 | 1 << 8, POWER),
    clear(1, Register::Ecx, 1 << 15, PMU),
    clear(
        1,
        Register::Edx,
        1 << 21 | 1 << 22 | 1 << 29 | 1 << 31,
        POWER,
    ),
    clear(6, Register::Eax, ALL, POWER),
    clear(6, Register::Ebx, ALL, POWER),
    clear(6, Register::Ecx, ALL, POWER),
    clear(
        7,
        Register::Ebx,
        1 << 2,
        "SGX needs memory that the monitor does not give",
    ),
    clear(
        7,
        Register::Ebx,
        1 << 4 | 1 << 11,
        "TSX: a history of leaks, and off on most hosts",
    ),
    clear(
        7,
        Register::Ebx,
        1 << 12 | 1 << 15,
        "resource monitoring and allocation are the host's",
    ),
    clear(7, Register::Edx, 1 << 22 | 1 << 24 | 1 << 25, AMX),
    clear(0xa, Register::Eax, ALL, PMU),
    clear(0xa, Register::Ebx, ALL, PMU),
    clear(0xa, Register::Ecx, ALL, PMU),
    clear(0xa, Register::Edx, ALL, PMU),
    // Unhalt, IPIs, yielding; memory and migration of confidential guests.
    clear(
        0x4000_0001,
        Register::Eax,
        1 << 7 | 1 << 11 | 1 << 13 | 1 << 16 | 1 << 17,
        HYPERCALLS,
    ),
    clear(0x8000_0001, Register::Ecx, 1 << 2, NESTED),
    clear(
        0x8000_0001,
        Register::Ecx,
        1 << 10 | 1 << 23 | 1 << 24 | 1 << 28,
        PMU,
    ),
    clear(0x8000_000a, Register::Edx, ALL, NESTED),
    clear(0x8000_0022, Register::Eax, ALL, PMU),
    clear(0x8000_0022, Register::Ebx, ALL, PMU),
];

/// Leaf 1: this processor's number, and how many there are, in EBX.
const FEATURES: u32 = 1;
/// Deterministic caches (Intel; AMD has the same shape elsewhere).
const CACHES_INTEL: u32 = 4;
const CACHES_AMD: u32 = 0x8000_001d;
/// Extended topology, in both its versions.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
/// XSAVE.
const EXTENDED_STATE: u32 = 0xd;
/// AMD: number of cores.
const SIZES_AMD: u32 = 0x8000_0008;
/// AMD: numbers of processor, core and node.
const TOPOLOGY_AMD: u32 = 0x8000_001e;
/// AMD's second extended topology: not numbered here, so it must not be believed.
const TOPOLOGY_AMD_EXTENDED: u32 = 0x8000_0026;

/// The CPUID table of processor `id` of `count`. Each processor is a core of its own in one package,
/// and its APIC id is `id`.
///
/// # Errors
/// More leaves than KVM takes.
pub fn for_vcpu(
    supported: &CpuId,
    id: u32,
    count: u32,
    tsc_deadline: bool,
) -> Result<CpuId, HypervisorError> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| {
            !TOPOLOGY.contains(&entry.function) && entry.function != TOPOLOGY_AMD_EXTENDED
        })
        .copied()
        .collect();
    for entry in &mut entries {
        apply(entry);
        number(entry, id, count);
        if entry.function == FEATURES && tsc_deadline {
            // KVM's timer has it whatever the host's processor has; without it the guest calibrates.
            entry.ecx |= 1 << 24;
        }
    }
    let largest = supported.as_slice().iter().map(|entry| entry.function);
    for leaf in TOPOLOGY {
        // A leaf beyond the largest basic one is not there.
        if largest.clone().any(|function| function == leaf) {
            entries.extend(topology(leaf, id, count));
        }
    }
    CpuId::from_entries(&entries).map_err(|_| HypervisorError::TooMany {
        what: "CPUID",
        count: entries.len(),
    })
}

fn apply(entry: &mut kvm_cpuid_entry2) {
    for rule in POLICY.iter().filter(|rule| rule.leaf == entry.function) {
        let register = match rule.register {
            Register::Eax => &mut entry.eax,
            Register::Ebx => &mut entry.ebx,
            Register::Ecx => &mut entry.ecx,
            Register::Edx => &mut entry.edx,
        };
        match rule.act {
            Act::Set(bits) => *register |= bits,
            Act::Clear(bits) => *register &= !bits,
        }
    }
}

/// Writes this processor's number and the number of processors where a leaf has them.
fn number(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    let last = count.saturating_sub(1);
    match entry.function {
        FEATURES => {
            entry.ebx = entry.ebx & 0xffff | (count & 0xff) << 16 | id << 24;
            // HTT: the count above means something.
            entry.edx = entry.edx & !(1 << 28) | u32::from(count > 1) << 28;
        }
        // A cache belongs to one core, the last level to all.
        CACHES_INTEL => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14 | (last & 0x3f) << 26;
        }
        CACHES_AMD => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14;
        }
        SIZES_AMD => {
            entry.ecx = entry.ecx & !0xf0ff | last & 0xff | (id_bits(count) & 0xf) << 12;
        }
        TOPOLOGY_AMD => {
            entry.eax = id;
            // One thread per core; one node.
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        // No supervisor components: neither `emulate` nor KVM's saved format has them, so IA32_XSS is
        // zero.
        EXTENDED_STATE if entry.index == 1 => (entry.ecx, entry.edx) = (0, 0),
        _ => {}
    }
}

/// Bits that tell `count` processors apart.
fn id_bits(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

/// Levels: threads of a core (one), cores of the package (all), none.
fn topology(leaf: u32, id: u32, count: u32) -> [kvm_cpuid_entry2; 3] {
    const SIGNIFICANT: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: SIGNIFICANT,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: id,
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, 1, 0, 1),
        level(1, 2, id_bits(count), count),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn processors_are_numbered_in_every_leaf_that_numbers_them() {
        let supported = CpuId::from_entries(&[
            leaf(1, 0, [0, 0x0700_0800, 0, 0]),
            leaf(0xb, 0, [1, 2, 0x100, 7]),
            leaf(SIZES_AMD, 0, [0x3030, 0, 0x7007, 0]),
            leaf(TOPOLOGY_AMD, 0, [7, 0x107, 0x303, 0]),
            leaf(CACHES_INTEL, 3, [0xfc03_c163, 0, 0, 0]),
        ])
        .unwrap();
        let cpuid = for_vcpu(&supported, 5, 6, true).unwrap();
        assert_eq!(find(&cpuid, 1, 0).ebx, 0x0506_0800);
        assert_eq!(find(&cpuid, 1, 0).ecx, 1 << 31 | 1 << 24);
        assert_eq!(find(&cpuid, 1, 0).edx, 1 << 28);
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.edx), (3, 6, 5));
        assert_eq!(find(&cpuid, 0xb, 0).ebx, 1);
        assert_eq!(find(&cpuid, SIZES_AMD, 0).ecx, 3 << 12 | 5);
        assert_eq!(find(&cpuid, TOPOLOGY_AMD, 0).ebx, 5);
        let cache = find(&cpuid, CACHES_INTEL, 3).eax;
        assert_eq!(
            (cache >> 26, cache >> 14 & 0xfff, cache & 0x3fff),
            (5, 5, 0x163)
        );
        assert!(!cpuid.as_slice().iter().any(|e| e.function == 0x1f));
    }

    #[test]
    fn one_processor_is_alone() {
        let supported = CpuId::from_entries(&[leaf(1, 0, [0, 0, 0, ALL]), leaf(0xb, 0, [0; 4])]);
        let cpuid = for_vcpu(&supported.unwrap(), 0, 1, false).unwrap();
        assert_eq!(find(&cpuid, 1, 0).edx >> 28 & 1, 0);
        assert_eq!(find(&cpuid, 1, 0).ecx >> 24 & 1, 0);
        assert_eq!(find(&cpuid, 0xb, 1).eax, 0);
    }

    #[test]
    fn what_the_policy_takes_away_is_gone_and_it_says_why() {
        let everything: Vec<_> = POLICY
            .iter()
            .map(|rule| leaf(rule.leaf, 0, [ALL; 4]))
            .collect();
        let supported = CpuId::from_entries(&everything).unwrap();
        let cpuid = for_vcpu(&supported, 0, 1, true).unwrap();
        for rule in POLICY {
            assert!(!rule.reason.is_empty());
            let entry = find(&cpuid, rule.leaf, 0);
            let value = match rule.register {
                Register::Eax => entry.eax,
                Register::Ebx => entry.ebx,
                Register::Ecx => entry.ecx,
                Register::Edx => entry.edx,
            };
            match rule.act {
                Act::Set(bits) => assert_eq!(value & bits, bits, "{rule:?}"),
                Act::Clear(bits) => assert_eq!(value & bits, 0, "{rule:?}"),
            }
        }
    }
}
