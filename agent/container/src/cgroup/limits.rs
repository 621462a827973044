//! `linux.resources` -> cgroup v2 files and values. Pure.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::spec::{SpecError, invalid, unsupported};

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// File name in the cgroup's directory.
    pub file: String,
    /// What to write.
    pub value: String,
    /// The specification's field, for errors.
    pub field: String,
    /// A missing file is no error, because the value limits nothing (kubelet lists every huge page size
    /// with limit 0, whether the machine has it or not).
    pub optional: bool,
}

fn setting(field: &str, file: &str, value: impl ToString) -> Setting {
    Setting {
        file: file.to_owned(),
        value: value.to_string(),
        field: format!("linux.resources.{field}"),
        optional: false,
    }
}

/// -1 means "no limit", and nothing below it means anything.
fn negative(field: &str, value: i64) -> SpecError {
    invalid(
        format!("linux.resources.{field}"),
        format!("{value} is less than -1"),
    )
}

/// All writes, in the order to make them.
pub fn plan(resources: &LinuxResources) -> Result<Vec<Setting>, SpecError> {
    refuse(resources)?;
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        plan_cpu(cpu, &mut settings)?;
    }
    if let Some(memory) = resources.memory() {
        plan_memory(memory, &mut settings)?;
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => {}
            -1 => settings.push(setting("pids.limit", "pids.max", "max")),
            limit if limit < 0 => return Err(negative("pids.limit", limit)),
            limit => settings.push(setting("pids.limit", "pids.max", limit)),
        }
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(|io| io.weight())
        && weight != 0
    {
        if !(10..=1000).contains(&weight) {
            return Err(invalid(
                "linux.resources.blockIO.weight",
                format!("{weight} is outside 10 to 1000"),
            ));
        }
        // cgroup v1's 10 to 1000 -> v2's 1 to 10000, runc's line.
        let weight = 1 + (u32::from(weight) - 10) * 9_999 / 990;
        settings.push(setting("blockIO.weight", "io.weight", weight));
    }
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        let size = limit.page_size();
        let plain = !size.is_empty() && size.chars().all(|c| c.is_ascii_alphanumeric());
        let field = format!("hugepageLimits[{index}]");
        if !plain {
            return Err(invalid(
                format!("linux.resources.{field}.pageSize"),
                format!("{size:?} is not a page size"),
            ));
        }
        let value = if limit.limit() < 0 {
            "max".to_owned()
        } else {
            limit.limit().to_string()
        };
        settings.push(Setting {
            optional: limit.limit() == 0,
            ..setting(&field, &format!("hugetlb.{size}.max"), value)
        });
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        let field = format!("unified[{file:?}]");
        let plain = file.contains('.')
            && !file.starts_with('.')
            && file
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        // The cgroup.* files are this runtime's own: freezing or killing is not a resource.
        if !plain || file.starts_with("cgroup.") {
            return Err(invalid(
                format!("linux.resources.{field}"),
                "it is not the name of a controller's file",
            ));
        }
        settings.push(setting(&field, file, value));
    }
    Ok(settings)
}

fn plan_cpu(cpu: &LinuxCpu, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        settings.push(setting("cpu.shares", "cpu.weight", weight(shares)));
    }
    let quota = cpu.quota().unwrap_or(0);
    let period = cpu.period().unwrap_or(0);
    if quota != 0 || period != 0 {
        let quota = if quota > 0 {
            quota.to_string()
        } else {
            "max".to_owned()
        };
        let value = if period > 0 {
            format!("{quota} {period}")
        } else {
            quota
        };
        settings.push(setting("cpu.quota", "cpu.max", value));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(setting("cpu.burst", "cpu.max.burst", burst));
    }
    if let Some(idle) = cpu.idle() {
        if !(0..=1).contains(&idle) {
            return Err(invalid(
                "linux.resources.cpu.idle",
                format!("{idle} is neither 0 nor 1"),
            ));
        }
        settings.push(setting("cpu.idle", "cpu.idle", idle));
    }
    if cpu.realtime_runtime().unwrap_or(0) != 0 {
        return Err(unsupported(
            "linux.resources.cpu.realtimeRuntime",
            "real-time scheduling, which cgroup v2 has no limit for,",
        ));
    }
    if cpu.realtime_period().unwrap_or(0) != 0 {
        return Err(unsupported(
            "linux.resources.cpu.realtimePeriod",
            "real-time scheduling, which cgroup v2 has no limit for,",
        ));
    }
    for (list, name) in [(cpu.cpus(), "cpus"), (cpu.mems(), "mems")] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            let plain = list
                .chars()
                .all(|c| c.is_ascii_digit() || matches!(c, ',' | '-' | ' '));
            if !plain {
                return Err(invalid(
                    format!("linux.resources.cpu.{name}"),
                    format!("{list:?} is not a list of numbers"),
                ));
            }
            settings.push(setting(
                &format!("cpu.{name}"),
                &format!("cpuset.{name}"),
                list,
            ));
        }
    }
    Ok(())
}

/// cgroup v1 shares (2 to 262144) -> v2 weight (1 to 10000), the line that runc and Kubernetes use.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn plan_memory(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<(), SpecError> {
    let bytes = |value: i64| {
        if value < 0 {
            "max".to_owned()
        } else {
            value.to_string()
        }
    };
    for (value, name) in [
        (memory.limit(), "memory.limit"),
        (memory.reservation(), "memory.reservation"),
        (memory.swap(), "memory.swap"),
    ] {
        if let Some(value) = value.filter(|value| *value < -1) {
            return Err(negative(name, value));
        }
    }
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(limit) = limit {
        settings.push(setting("memory.limit", "memory.max", bytes(limit)));
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        settings.push(setting(
            "memory.reservation",
            "memory.low",
            bytes(reservation),
        ));
    }
    // v1 counts memory + swap together, v2 swap alone.
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        let value = match (limit, swap) {
            (_, swap) if swap < 0 => "max".to_owned(),
            (Some(limit), swap) if limit > 0 && swap >= limit => (swap - limit).to_string(),
            (Some(limit), _) if limit > 0 => {
                return Err(invalid(
                    "linux.resources.memory.swap",
                    "memory and swap together are less than memory alone",
                ));
            }
            _ => {
                return Err(invalid(
                    "linux.resources.memory.swap",
                    "a limit of memory and swap needs a limit of memory",
                ));
            }
        };
        settings.push(Setting {
            // A guest without swap has no such file, and nothing to limit.
            optional: true,
            ..setting("memory.swap", "memory.swap.max", value)
        });
    }
    #[allow(deprecated)]
    let kernel = memory.kernel();
    for (value, name) in [(kernel, "kernel"), (memory.kernel_tcp(), "kernelTCP")] {
        if value.is_some_and(|value| value > 0) {
            return Err(unsupported(
                format!("linux.resources.memory.{name}"),
                "a limit of kernel memory, which cgroup v2 has not,",
            ));
        }
    }
    if memory.swappiness().is_some() {
        return Err(unsupported(
            "linux.resources.memory.swappiness",
            "swappiness, which cgroup v2 has not,",
        ));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(unsupported(
            "linux.resources.memory.disableOOMKiller",
            "doing without the OOM killer, which cgroup v2 cannot,",
        ));
    }
    Ok(())
}

/// `memory.checkBeforeUpdate`: a limit that is in use already is refused, instead of killing for it.
/// `usage` is memory.current. As runc does it for version 2.
pub fn check_usage(memory: &LinuxMemory, usage: u64) -> Result<(), SpecError> {
    if memory.check_before_update() != Some(true) {
        return Ok(());
    }
    for (limit, name) in [(memory.swap(), "swap"), (memory.limit(), "limit")] {
        let limit = limit.and_then(|limit| u64::try_from(limit).ok());
        if let Some(limit) = limit.filter(|limit| (1..=usage).contains(limit)) {
            return Err(invalid(
                format!("linux.resources.memory.{name}"),
                format!("{limit} is not more than what is in use, {usage}"),
            ));
        }
    }
    Ok(())
}

fn refuse(resources: &LinuxResources) -> Result<(), SpecError> {
    if let Some(io) = resources.block_io() {
        let lists = [
            (
                io.weight_device().as_ref().is_some_and(|l| !l.is_empty()),
                "weightDevice",
            ),
            (
                io.throttle_read_bps_device()
                    .as_ref()
                    .is_some_and(|l| !l.is_empty()),
                "throttleReadBpsDevice",
            ),
            (
                io.throttle_write_bps_device()
                    .as_ref()
                    .is_some_and(|l| !l.is_empty()),
                "throttleWriteBpsDevice",
            ),
            (
                io.throttle_read_iops_device()
                    .as_ref()
                    .is_some_and(|l| !l.is_empty()),
                "throttleReadIOPSDevice",
            ),
            (
                io.throttle_write_iops_device()
                    .as_ref()
                    .is_some_and(|l| !l.is_empty()),
                "throttleWriteIOPSDevice",
            ),
            (io.leaf_weight().is_some_and(|w| w != 0), "leafWeight"),
        ];
        for (present, name) in lists {
            if present {
                return Err(unsupported(
                    format!("linux.resources.blockIO.{name}"),
                    "a limit of a block device, which it numbers as the host's,",
                ));
            }
        }
    }
    if let Some(network) = resources.network() {
        if network.class_id().is_some_and(|id| id != 0) {
            return Err(unsupported(
                "linux.resources.network.classID",
                "a network class",
            ));
        }
        if network.priorities().as_ref().is_some_and(|p| !p.is_empty()) {
            return Err(unsupported(
                "linux.resources.network.priorities",
                "a network priority",
            ));
        }
    }
    if resources.rdma().as_ref().is_some_and(|r| !r.is_empty()) {
        return Err(unsupported("linux.resources.rdma", "a limit of RDMA"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
