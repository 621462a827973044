use super::*;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

fn planned(resources: Value) -> Result<Vec<(String, String)>, SpecError> {
    let resources: LinuxResources = serde_json::from_value(resources).expect("resources");
    Ok(plan(&resources)?
        .into_iter()
        .map(|setting| (setting.file, setting.value))
        .collect())
}

#[rstest]
#[case(json!({}), &[])]
#[case(json!({"pids": {"limit": 100}}), &[("pids.max", "100")])]
#[case(json!({"pids": {"limit": -1}}), &[("pids.max", "max")])]
#[case(json!({"pids": {"limit": 0}}), &[])]
#[case(json!({"cpu": {"shares": 1024}}), &[("cpu.weight", "39")])]
#[case(json!({"cpu": {"shares": 2}}), &[("cpu.weight", "1")])]
#[case(json!({"cpu": {"shares": 262144}}), &[("cpu.weight", "10000")])]
#[case(json!({"cpu": {"shares": 0}}), &[])]
#[case(json!({"cpu": {"quota": 50000, "period": 100000}}), &[("cpu.max", "50000 100000")])]
#[case(json!({"cpu": {"quota": -1, "period": 100000}}), &[("cpu.max", "max 100000")])]
#[case(json!({"cpu": {"quota": 50000}}), &[("cpu.max", "50000")])]
#[case(json!({"cpu": {"period": 50000}}), &[("cpu.max", "max 50000")])]
#[case(json!({"cpu": {"burst": 5, "idle": 1}}), &[("cpu.max.burst", "5"), ("cpu.idle", "1")])]
#[case(json!({"cpu": {"cpus": "0-1", "mems": "0"}}), &[("cpuset.cpus", "0-1"), ("cpuset.mems", "0")])]
#[case(json!({"memory": {"limit": 1048576}}), &[("memory.max", "1048576")])]
#[case(json!({"memory": {"limit": -1, "swap": -1}}), &[("memory.max", "max"), ("memory.swap.max", "max")])]
#[case(json!({"memory": {"limit": 100, "swap": 150, "reservation": 50}}),
    &[("memory.max", "100"), ("memory.low", "50"), ("memory.swap.max", "50")])]
#[case(json!({"memory": {"limit": 100, "swap": 100}}), &[("memory.max", "100"), ("memory.swap.max", "0")])]
#[case(json!({"memory": {"limit": 0, "kernel": 0, "disableOOMKiller": false, "useHierarchy": true}}), &[])]
#[case(json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}), &[("hugetlb.2MB.max", "4194304")])]
#[case(json!({"blockIO": {"weight": 10}}), &[("io.weight", "1")])]
#[case(json!({"blockIO": {"weight": 1000}}), &[("io.weight", "10000")])]
#[case(json!({"unified": {"memory.high": "5", "cpu.weight": "7"}}), &[("cpu.weight", "7"), ("memory.high", "5")])]
fn limits_become_writes(#[case] resources: Value, #[case] expected: &[(&str, &str)]) {
    let found = planned(resources).expect("planned");
    let expected: Vec<_> = expected
        .iter()
        .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
        .collect();
    assert_eq!(found, expected);
}

#[rstest]
#[case(json!({"memory": {"swap": 5}}), "memory.swap")]
#[case(json!({"memory": {"limit": 10, "swap": 5}}), "memory.swap")]
#[case(json!({"memory": {"limit": -2}}), "memory.limit")]
#[case(json!({"memory": {"reservation": -2}}), "memory.reservation")]
#[case(json!({"memory": {"limit": 10, "swap": -2}}), "memory.swap")]
#[case(json!({"pids": {"limit": -2}}), "pids.limit")]
#[case(json!({"memory": {"kernel": 5}}), "memory.kernel")]
#[case(json!({"memory": {"kernelTCP": 5}}), "memory.kernelTCP")]
#[case(json!({"memory": {"swappiness": 0}}), "memory.swappiness")]
#[case(json!({"memory": {"disableOOMKiller": true}}), "memory.disableOOMKiller")]
#[case(json!({"cpu": {"realtimeRuntime": 5}}), "cpu.realtimeRuntime")]
#[case(json!({"cpu": {"cpus": "0; rm"}}), "cpu.cpus")]
#[case(json!({"blockIO": {"weight": 5}}), "blockIO.weight")]
#[case(json!({"blockIO": {"leafWeight": 50}}), "blockIO.leafWeight")]
#[case(json!({"cpu": {"idle": 2}}), "cpu.idle")]
#[case(json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]}}), "blockIO.throttleReadBpsDevice")]
#[case(json!({"network": {"classID": 5}}), "network.classID")]
#[case(json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}), "rdma")]
#[case(json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}), "hugepageLimits[0].pageSize")]
#[case(json!({"unified": {"cgroup.procs": "1"}}), "unified[\"cgroup.procs\"]")]
#[case(json!({"unified": {"../memory.max": "1"}}), "unified[\"../memory.max\"]")]
#[case(json!({"unified": {"plain": "1"}}), "unified[\"plain\"]")]
fn what_v2_has_not_is_refused_by_its_path(#[case] resources: Value, #[case] field: &str) {
    let error = planned(resources).expect_err("refused").to_string();
    assert!(
        error.starts_with(&format!("linux.resources.{field}: ")),
        "{error}"
    );
}

#[test]
fn a_zero_limit_of_a_page_size_that_is_not_there_is_optional() {
    let resources: LinuxResources = serde_json::from_value(json!({"hugepageLimits": [
        {"pageSize": "1GB", "limit": 0}, {"pageSize": "2MB", "limit": 1}]}))
    .expect("resources");
    let settings = plan(&resources).expect("planned");
    assert_eq!(
        settings.iter().map(|s| s.optional).collect::<Vec<_>>(),
        [true, false]
    );
}

proptest! {
    #[test]
    fn weight_is_monotonic_and_in_range(a: u64, b: u64) {
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(weight(low) <= weight(high));
        prop_assert!((1..=10_000).contains(&weight(a)));
    }
}

#[rstest]
#[case(json!({"limit": 10}), true)]
#[case(json!({"limit": 10, "checkBeforeUpdate": false}), true)]
#[case(json!({"limit": 10, "checkBeforeUpdate": true}), false)]
#[case(json!({"limit": 100, "checkBeforeUpdate": true}), false)]
#[case(json!({"limit": 101, "checkBeforeUpdate": true}), true)]
#[case(json!({"limit": -1, "checkBeforeUpdate": true}), true)]
#[case(json!({"limit": 0, "swap": 0, "checkBeforeUpdate": true}), true)]
#[case(json!({"limit": -1, "swap": 50, "checkBeforeUpdate": true}), false)]
#[case(json!({"checkBeforeUpdate": true}), true)]
fn a_limit_in_use_is_refused_if_asked(#[case] memory: Value, #[case] passes: bool) {
    let memory: LinuxMemory = serde_json::from_value(memory).expect("memory");
    assert_eq!(check_usage(&memory, 100).is_ok(), passes);
}
