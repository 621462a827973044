//! How large a pod's machine is: from its limits, within the operator's bounds.

use std::collections::HashMap;

use isopod_config::{CpuConfig, MemoryConfig};
use isopod_settings::Settings;
use oci_spec::runtime::Spec;

use super::{PlanError, annotations::Wishes};

const MIB: u64 = 1 << 20;

/// What containerd's CRI plugin writes into a sandbox container's annotations: the sums of the
/// pod's limits, which its own resources do not tell.
const CRI_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CRI_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CRI_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// The pod's limits, where it has some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limits {
    memory_bytes: Option<u64>,
    /// Hundreds of microseconds cancel out: CPUs, rounded up.
    cpus: Option<u32>,
}

/// The machine's size. A limit above the operator's maximum is no error: it is a bound for the
/// container, not a promise to it. An annotation above it has been refused before.
pub(crate) fn size(
    spec: &Spec,
    wishes: Wishes,
    settings: &Settings,
) -> Result<(CpuConfig, MemoryConfig), PlanError> {
    let limits = limits(spec)?;
    let vm = &settings.vm;
    let limit_mib = limits.memory_bytes.unwrap_or(0).div_ceil(MIB);
    let own_mib = wishes.memory_mib.unwrap_or(vm.memory_mib);
    // An even number, because huge pages have 2 MiB.
    let size_mib = own_mib
        .saturating_add(limit_mib)
        .min(vm.max_memory_mib)
        .next_multiple_of(2);
    let cpus = wishes.cpus.or(limits.cpus).unwrap_or(vm.cpus);
    let cpus = cpus.clamp(1, vm.max_cpus);
    Ok((
        CpuConfig {
            boot: cpus,
            max: cpus,
        },
        MemoryConfig {
            size_mib,
            huge_pages: vm.huge_pages,
        },
    ))
}

fn limits(spec: &Spec) -> Result<Limits, PlanError> {
    let annotations = spec.annotations().as_ref();
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let memory = resources.and_then(|resources| resources.memory().as_ref());
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());

    let memory = number(annotations, CRI_MEMORY)?.or(memory.and_then(|memory| memory.limit()));
    let quota = number(annotations, CRI_CPU_QUOTA)?.or(cpu.and_then(|cpu| cpu.quota()));
    let period = match number(annotations, CRI_CPU_PERIOD)? {
        Some(period) => u64::try_from(period).ok(),
        None => cpu.and_then(|cpu| cpu.period()),
    };
    let cpus = match (quota.and_then(|quota| u64::try_from(quota).ok()), period) {
        (Some(quota @ 1..), Some(period @ 1..)) => {
            Some(u32::try_from(quota.div_ceil(period)).unwrap_or(u32::MAX))
        }
        _ => None,
    };
    Ok(Limits {
        // -1 and 0 mean "no limit".
        memory_bytes: memory
            .and_then(|bytes| u64::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0),
        cpus,
    })
}

fn number(
    annotations: Option<&HashMap<String, String>>,
    key: &str,
) -> Result<Option<i64>, PlanError> {
    let Some(text) = annotations.and_then(|annotations| annotations.get(key)) else {
        return Ok(None);
    };
    let parsed = text.parse();
    parsed.map(Some).map_err(|_| {
        PlanError::invalid(
            format!("annotations[{key}]"),
            format!("{text:?} is not a number"),
        )
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn sized(resources: serde_json::Value, annotations: serde_json::Value) -> (u32, u64) {
        let spec = serde_json::from_value(json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"},
            "annotations": annotations, "linux": {"resources": resources},
        }));
        let settings = Settings::default();
        let (cpus, memory) = size(&spec.unwrap(), Wishes::default(), &settings).unwrap();
        assert_eq!(cpus.boot, cpus.max);
        (cpus.max, memory.size_mib)
    }

    #[rstest]
    #[case(json!({}), json!({}), (1, 512))]
    #[case(json!({"memory": {"limit": 1 << 20}}), json!({}), (1, 514))]
    #[case(json!({"memory": {"limit": 1}}), json!({}), (1, 514))]
    #[case(json!({"memory": {"limit": -1}}), json!({}), (1, 512))]
    #[case(json!({"memory": {"limit": i64::MAX}}), json!({}), (1, 65536))]
    #[case(json!({"cpu": {"quota": 150_000, "period": 100_000}}), json!({}), (2, 512))]
    #[case(json!({"cpu": {"quota": 200_000, "period": 100_000}}), json!({}), (2, 512))]
    #[case(json!({"cpu": {"quota": -1, "period": 100_000}}), json!({}), (1, 512))]
    #[case(json!({"cpu": {"quota": 1, "period": 0}}), json!({}), (1, 512))]
    #[case(json!({"cpu": {"quota": i64::MAX, "period": 1}}), json!({}), (16, 512))]
    #[case(json!({"memory": {"limit": 1 << 20}}), json!({CRI_MEMORY: "1073741824"}), (1, 1536))]
    #[case(json!({}), json!({CRI_CPU_QUOTA: "400000", CRI_CPU_PERIOD: "100000"}), (4, 512))]
    fn limits_make_the_size(
        #[case] resources: serde_json::Value,
        #[case] annotations: serde_json::Value,
        #[case] expected: (u32, u64),
    ) {
        assert_eq!(sized(resources, annotations), expected);
    }

    #[test]
    fn annotations_replace_the_base() {
        let spec = Spec::default();
        let wishes = Wishes {
            memory_mib: Some(101),
            cpus: Some(3),
        };
        let (cpus, memory) = size(&spec, wishes, &Settings::default()).unwrap();
        assert_eq!((cpus.max, memory.size_mib), (3, 102));
    }
}
