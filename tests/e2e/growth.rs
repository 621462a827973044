//! A pod's machine follows the limits of its containers: up before they need it, down when they do not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isopod_tests::{
    Bed, Case, Container, check_contains, check_eq,
    process::eventually,
    shim::{Code, Empty, Refusal, Shim, api, json_any},
};
use serde_json::{Value, json};

use crate::abuse::{POD, SLEEP, member};

/// The cases.
pub const CASES: &[Case] = &[
    Case::isopod("processors_follow_the_limits", processors).within(240),
    Case::isopod("memory_follows_the_limits", memory).within(300),
    Case::isopod("a_limit_in_use_is_refused", limit_in_use),
    Case::isopod("the_machine_has_what_a_limit_asks_for", has_it).smoke(),
];

/// What comes after an answer, or beside one.
const SOON: Duration = Duration::from_secs(60);

fn cpus(cpus: u32) -> Value {
    json!({ "cpu": { "quota": cpus * 100_000, "period": 100_000 } })
}

/// A member that sees its control group.
fn limited<'b>(bed: &'b Bed, id: &str, limits: &Value) -> Result<Container<'b>> {
    member(bed, id, SLEEP, |spec| {
        spec["linux"]["resources"] = limits.clone();
        let options = ["nosuid", "noexec", "nodev", "ro"];
        let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": options });
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(mount);
            mounts.push(
                json!({ "destination": "/scratch", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "noexec", "nodev"] }),
            );
        }
    })
}

/// What containerd asks of a shim when limits change; `ctr` has no command for it.
fn update(bed: &Bed, id: &str, limits: &Value) -> Result<Result<(), Refusal>> {
    let request = api::UpdateTaskRequest {
        id: id.to_owned(),
        resources: Some(json_any("LinuxResources", limits)).into(),
        ..api::UpdateTaskRequest::default()
    };
    let mut caller = Shim::existing(bed, POD)?.caller()?;
    Ok(caller.call::<Empty>("Update", &request)?.map(drop))
}

fn updated(bed: &Bed, id: &str, limits: &Value) -> Result<()> {
    let updated = update(bed, id, limits)?;
    updated.map_err(|refusal| anyhow::anyhow!("{limits}: {refusal:?}"))
}

/// What a container sees of its machine's processors: all that work, and what its group may use.
fn seen(container: &Container<'_>) -> Result<(usize, String)> {
    let cpuinfo = container.output(["cat", "/proc/cpuinfo"])?;
    let working = cpuinfo.lines().filter(|line| line.starts_with("processor"));
    let group = container.output(["cat", "/sys/fs/cgroup/cpuset.cpus.effective"])?;
    check_eq!(
        container.output(["nproc"])?,
        working.clone().count().to_string()
    );
    Ok((working.count(), group))
}

fn become_seen(container: &Container<'_>, expected: (usize, &str)) -> Result<()> {
    let mut last = None;
    let waited = eventually("the processors", SOON, || {
        let seen = seen(container)?;
        let same = (seen.0, seen.1.as_str()) == expected;
        last = Some(seen);
        Ok(same.then_some(()))
    });
    waited.with_context(|| format!("{last:?}, not {expected:?}"))
}

fn processors(bed: &Bed) -> Result<()> {
    let quiet = limited(bed, POD, &json!({}))?;
    check_eq!(seen(&quiet)?, (1, "0".to_owned()));
    let busy = limited(bed, "busy", &cpus(2))?;
    // They are there before it is.
    check_eq!(seen(&busy)?, (2, "0-1".to_owned()));
    check_eq!(seen(&quiet)?, (2, "0-1".to_owned()));
    updated(bed, "busy", &cpus(4))?;
    check_eq!(seen(&busy)?, (4, "0-3".to_owned()));
    check_eq!(
        busy.output(["cat", "/sys/fs/cgroup/cpu.max"])?,
        "400000 100000"
    );
    // More than the machine has: a limit is no promise.
    updated(bed, "busy", &cpus(100))?;
    check_eq!(seen(&busy)?.0, 4);
    updated(bed, "busy", &cpus(3))?;
    become_seen(&busy, (3, "0-2"))?;
    busy.end()?;
    become_seen(&quiet, (1, "0"))?;
    quiet.end()
}

/// MiB that the guest's kernel has.
fn total(container: &Container<'_>) -> Result<u64> {
    let meminfo = container.output(["cat", "/proc/meminfo"])?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("MemTotal")?.trim().parse::<u64>()? >> 10)
}

/// What the shim said of its machine's size.
fn told(bed: &Bed) -> String {
    let log = bed.log();
    let lines = log.lines().filter(|line| line.contains("Size {"));
    lines.collect::<Vec<_>>().join("\n")
}

fn memory(bed: &Bed) -> Result<()> {
    let quiet = limited(bed, POD, &json!({}))?;
    let before = total(&quiet)?;
    let large = limited(bed, "large", &json!({ "memory": { "limit": 1 << 30 } }))?;
    // The kernel keeps a sixtieth for its own account of it. Of the rest it makes three times what it
    // booted with movable, so that all of this can be given back.
    let grown = total(&large)?;
    ensure!(grown > before + 990, "{before} MiB became {grown}");
    // More than the machine booted with.
    // More than the machine booted with; taken, not written, which takes a software CPU long.
    let fill = "fallocate -l 629145600 /scratch/f && du -m /scratch/f && rm /scratch/f";
    check_eq!(large.output(["sh", "-c", fill])?, "600\t/scratch/f");
    updated(bed, "large", &json!({ "memory": { "limit": 1408 << 20 } }))?;
    ensure!(total(&large)? > grown + 370, "{grown} MiB");
    large.end()?;
    let less = eventually("the memory is given back", SOON, || {
        std::thread::sleep(Duration::from_secs(1));
        Ok((total(&quiet)? < before + 64).then_some(()))
    });
    less.with_context(|| told(bed))?;
    check_eq!(quiet.output(["echo", "well"])?, "well");
    quiet.end()
}

/// In the pod that the monitor's cases share the machine grows for the second container; elsewhere each is a
/// pod of its own, which boots so large.
fn has_it(bed: &Bed) -> Result<()> {
    const ONLINE: [&str; 2] = ["cat", "/sys/devices/system/cpu/online"];
    let quiet = bed.container().sleeping()?;
    let (memory, online) = (total(&quiet)?, quiet.output(ONLINE)?);
    let cpus = ["--cpu-quota", "300000", "--cpu-period", "100000"];
    let memory_limit = ["--memory-limit", "134217728"];
    let busy = bed.container().flags(cpus).flags(memory_limit).sleeping()?;
    check_eq!(busy.output(ONLINE)?, "0-2");
    let grown = total(&busy)?;
    ensure!(grown > memory + 110, "{memory} MiB became {grown}");
    // What was added works: a program runs on the third processor.
    let on_third = "taskset 4 sh -c 'set -- $(cat /proc/self/stat); shift 38; echo $1'";
    check_eq!(busy.output(["sh", "-c", on_third])?, "2");
    busy.end()?;
    let less = eventually("the machine is as it was", SOON, || {
        let now = (total(&quiet)?, quiet.output(ONLINE)?);
        Ok((now.0 < memory + 64 && now.1 == online).then_some(()))
    });
    less.with_context(|| told(bed))?;
    quiet.end()
}

fn limit_in_use(bed: &Bed) -> Result<()> {
    let mebibytes =
        |limit: u64| json!({ "memory": { "limit": limit << 20, "checkBeforeUpdate": true } });
    let container = limited(bed, POD, &json!({ "memory": { "limit": 256 << 20 } }))?;
    let fill = "fallocate -l 67108864 /scratch/f && du -m /scratch/f";
    check_eq!(container.output(["sh", "-c", fill])?, "64\t/scratch/f");
    let Err(refusal) = update(bed, POD, &mebibytes(32))? else {
        anyhow::bail!("a limit of 32 MiB was taken where 64 are in use");
    };
    check_eq!(refusal.code, Code::INVALID_ARGUMENT);
    check_contains!(refusal.message, "linux.resources.memory.limit");
    let limit = || container.output(["cat", "/sys/fs/cgroup/memory.max"]);
    check_eq!(limit()?, (256 << 20).to_string());
    updated(bed, POD, &mebibytes(128))?;
    check_eq!(limit()?, (128 << 20).to_string());
    check_eq!(
        container.output(["du", "-m", "/scratch/f"])?,
        "64\t/scratch/f"
    );
    container.end()
}
