//! How large a pod's machine is: from its limits, within the operator's bounds.

use std::collections::HashMap;

use isopod_config::{CpuConfig, MemoryConfig};
use isopod_settings::Settings;
use oci_spec::runtime::Spec;

use super::{
    PlanError,
    annotations::Wishes,
    demand::{Bounds, Demand, Size, sum},
};

/// What containerd's CRI plugin writes into a sandbox container's annotations: the sums of the
/// pod's limits, which its own resources do not tell.
const CRI_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CRI_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CRI_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// What a machine boots with and can grow to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MachineSize {
    pub cpus: CpuConfig,
    pub memory: MemoryConfig,
    pub spare_memory_mib: u64,
    /// The same, and what is counted on top of.
    pub bounds: Bounds,
}

/// The machine's size. A limit above the operator's maximum is no error: it is a bound for the
/// container, not a promise to it. An annotation above it has been refused before.
pub(crate) fn size(
    spec: &Spec,
    wishes: Wishes,
    settings: &Settings,
) -> Result<MachineSize, PlanError> {
    let limits = sum([&limits(spec)?]);
    let vm = &settings.vm;
    let own_mib = wishes.memory_mib.unwrap_or(vm.memory_mib);
    // An even number, because huge pages have 2 MiB.
    let size_mib = own_mib
        .saturating_add(limits.memory_mib)
        .min(vm.max_memory_mib)
        .next_multiple_of(2);
    let limit = Some(limits.cpus).filter(|cpus| *cpus != 0);
    let cpus = wishes.cpus.or(limit).unwrap_or(vm.cpus);
    let cpus = cpus.clamp(1, vm.max_cpus);
    let most_cpus = cpus.saturating_add(vm.spare_cpus).min(vm.max_cpus);
    // What a machine of huge pages could grow by would have to be set aside on the host from the start.
    let spare_memory_mib = match vm.huge_pages {
        true => 0,
        false => vm
            .spare_memory_mib
            .min(vm.max_memory_mib.saturating_sub(size_mib)),
    };
    Ok(MachineSize {
        cpus: CpuConfig {
            boot: cpus,
            max: most_cpus,
        },
        memory: MemoryConfig {
            size_mib,
            huge_pages: vm.huge_pages,
        },
        spare_memory_mib,
        bounds: Bounds {
            boot: Size {
                cpus,
                memory_mib: size_mib,
            },
            most: Size {
                cpus: most_cpus,
                memory_mib: size_mib + spare_memory_mib,
            },
            own_mib,
        },
    })
}

/// The pod's.
fn limits(spec: &Spec) -> Result<Demand, PlanError> {
    let annotations = spec.annotations().as_ref();
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    Ok(Demand::of(resources).replaced(
        number(annotations, CRI_MEMORY)?,
        number(annotations, CRI_CPU_QUOTA)?,
        number(annotations, CRI_CPU_PERIOD)?,
    ))
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
        let size = size(&spec.unwrap(), Wishes::default(), &settings).unwrap();
        assert_eq!(size.bounds.boot.cpus, size.cpus.boot);
        assert_eq!(size.bounds.boot.memory_mib, size.memory.size_mib);
        (size.cpus.boot, size.memory.size_mib)
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
        let size = size(&spec, wishes, &Settings::default()).unwrap();
        assert_eq!((size.cpus.boot, size.memory.size_mib), (3, 102));
        assert_eq!(size.bounds.own_mib, 101);
    }

    #[rstest]
    // What there is to spare, and the most there may be.
    #[case(3, 4096, 16, 65536, false, (4, 4096))]
    #[case(0, 0, 16, 65536, false, (1, 0))]
    #[case(30, 1 << 20, 16, 1024, false, (16, 512))]
    #[case(3, 4096, 2, 512, false, (2, 0))]
    #[case(3, 4096, 2, 65536, true, (2, 0))]
    fn it_grows_by_what_is_spare_up_to_the_most(
        #[case] spare_cpus: u32,
        #[case] spare_memory_mib: u64,
        #[case] max_cpus: u32,
        #[case] max_memory_mib: u64,
        #[case] huge_pages: bool,
        #[case] (cpus, memory): (u32, u64),
    ) {
        let mut settings = Settings::default();
        settings.vm.spare_cpus = spare_cpus;
        settings.vm.spare_memory_mib = spare_memory_mib;
        settings.vm.max_cpus = max_cpus;
        settings.vm.max_memory_mib = max_memory_mib;
        settings.vm.huge_pages = huge_pages;
        let size = size(&Spec::default(), Wishes::default(), &settings).unwrap();
        assert_eq!((size.cpus.max, size.spare_memory_mib), (cpus, memory));
        assert_eq!(size.bounds.most.cpus, cpus);
        assert_eq!(size.bounds.most.memory_mib, 512 + memory);
    }
}
