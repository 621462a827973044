use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;

const BOUNDS: Bounds = Bounds {
    boot: Size {
        cpus: 1,
        memory_mib: 512,
    },
    most: Size {
        cpus: 4,
        memory_mib: 4608,
    },
    own_mib: 512,
};

fn resources(json: serde_json::Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

fn demand(json: serde_json::Value) -> Demand {
    Demand::of(Some(&resources(json)))
}

fn cpu(quota: i64, period: u64) -> serde_json::Value {
    json!({"cpu": {"quota": quota, "period": period}})
}

fn memory(limit: i64) -> serde_json::Value {
    json!({"memory": {"limit": limit}})
}

fn file(name: &str, value: &str) -> serde_json::Value {
    json!({"unified": {name: value}})
}

#[rstest]
#[case::nothing(vec![], (1, 512))]
#[case::no_limits(vec![json!({}), json!({})], (1, 512))]
#[case::less_than_it_booted_with(vec![cpu(10_000, 100_000)], (1, 512))]
#[case::halves(vec![cpu(150_000, 100_000), cpu(75_000, 50_000)], (3, 512))]
#[case::thirds(vec![cpu(1, 3), cpu(1, 3), cpu(1, 3), json!({})], (1, 512))]
#[case::a_little_more(vec![cpu(100_000, 100_000), cpu(1, 1_000_000)], (2, 512))]
#[case::next_to_nothing(vec![cpu(100_000, 100_000), cpu(1, u64::MAX)], (2, 512))]
#[case::the_kernels_period(vec![json!({"cpu": {"quota": 200_000}})], (2, 512))]
#[case::unlimited(vec![cpu(-1, 100_000), memory(-1), memory(0)], (1, 512))]
#[case::sums(vec![memory(1 << 30), memory(1), memory(1 << 20)], (1, 512 + 1024 + 2))]
#[case::beyond(vec![cpu(900_000, 100_000), memory(1 << 40)], (4, 4608))]
#[case::far_beyond(vec![cpu(i64::MAX, 1), cpu(i64::MAX, 1), memory(i64::MAX), memory(i64::MAX)], (4, 4608))]
#[case::by_file(vec![file("cpu.max", "250000 100000"), file("memory.max", "1073741824")], (3, 1536))]
#[case::by_file_with_suffixes(vec![file("memory.max", "1G"), file("memory.max", "1024k\n")], (1, 1537))]
#[case::a_file_counts_more(vec![json!({"cpu": {"quota": 100_000}, "unified": {"cpu.max": "200000"}})], (2, 512))]
#[case::a_file_ends_a_limit(vec![json!({"memory": {"limit": 1 << 30}, "unified": {"memory.max": "max"}})], (1, 512))]
#[case::no_file_of_a_kernel(
    vec![file("cpu.max", "max 100000"), file("cpu.max", "9 9 9"), file("cpu.max", "900000 0"),
        file("cpu.max", ""), file("memory.max", "G"), file("memory.max", "-1"),
        file("memory.max", "18446744073709551615T"), file("memory.max", "1\u{e9}")],
    (1, 512)
)]
fn the_sum_makes_the_size(
    #[case] containers: Vec<serde_json::Value>,
    #[case] (cpus, memory_mib): (u32, u64),
) {
    let demands: Vec<_> = containers.into_iter().map(demand).collect();
    assert_eq!(BOUNDS.fit(&demands).0, Size { cpus, memory_mib });
}

#[test]
fn what_is_needed_is_told_beside_what_can_be_had() {
    let (size, needed) = BOUNDS.fit(&[demand(cpu(900_000, 100_000))]);
    assert_eq!((size.cpus, needed.cpus), (4, 9));
}

#[rstest]
#[case::nothing_named(json!({}), (2, 1024))]
#[case::zero_is_nothing(json!({"memory": {"limit": 0}, "cpu": {"quota": 0}}), (2, 1024))]
#[case::memory_alone(memory(1 << 20), (2, 1))]
#[case::a_quota_of_the_old_period(json!({"cpu": {"quota": 150_000}}), (3, 1024))]
#[case::no_limits(json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}), (0, 0))]
#[case::a_period_alone_ends_the_quota(json!({"cpu": {"period": 10_000}}), (0, 1024))]
fn an_update_replaces_what_it_names(
    #[case] update: serde_json::Value,
    #[case] (cpus, memory_mib): (u32, u64),
) {
    let before = json!({"memory": {"limit": 1 << 30}, "cpu": {"quota": 100_000, "period": 50_000}});
    let after = demand(before).updated(&resources(update));
    assert_eq!(sum([&after]), Size { cpus, memory_mib });
}

fn demands() -> impl Strategy<Value = Vec<Demand>> {
    let one = (
        any::<Option<i64>>(),
        any::<Option<i64>>(),
        any::<Option<i64>>(),
    );
    let one =
        one.prop_map(|(bytes, quota, period)| Demand::default().replaced(bytes, quota, period));
    prop::collection::vec(one, 0..8)
}

proptest! {
    #[test]
    fn a_machine_stays_in_its_bounds_and_never_shrinks_for_one_more(
        all in demands(), one in demands(),
    ) {
        let (size, _) = BOUNDS.fit(&all);
        prop_assert_eq!(size.max(BOUNDS.boot).min(BOUNDS.most), size);
        let (larger, _) = BOUNDS.fit(all.iter().chain(&one));
        prop_assert_eq!(larger.max(size), larger);
        let mut turned = all.clone();
        turned.reverse();
        prop_assert_eq!(BOUNDS.fit(&turned).0, size);
    }

    #[test]
    fn the_larger_of_two_needs_what_either_needs(one in demands(), two in demands()) {
        for (one, two) in one.iter().zip(&two) {
            let both = sum([&one.max(*two)]);
            prop_assert_eq!(both, sum([one]).max(sum([two])));
        }
    }
}
