//! Memory, processes, CPU.

use anyhow::Result;
use isopod_tests::{Bed, Case, check_contains, check_eq, probe::PATH, spec::spec};
use serde_json::json;

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("memory_limit_kills_and_is_told", out_of_memory).with_probe(),
    Case::both("memory_limit_of_an_exec_spares_init", exec_out_of_memory).with_probe(),
    Case::both("memory_within_the_limit_is_usable", within),
    Case::both("process_limit", processes),
    Case::both("cpu_limit", cpu),
];

fn out_of_memory(bed: &Bed) -> Result<()> {
    let mut events = bed.events()?;
    let run = bed.container().flags(["--memory-limit", "33554432"]);
    let finished = run.run(["sh", "-c", &format!("{PATH} eat; exit $?")])?;
    check_eq!(finished.code, 137);
    let oom = events.wait("/tasks/oom", |event| event.text("container_id") == run.id())?;
    check_eq!(oom.text("container_id"), run.id());
    Ok(())
}

fn exec_out_of_memory(bed: &Bed) -> Result<()> {
    let mut events = bed.events()?;
    let container = bed
        .container()
        .flags(["--memory-limit", "33554432"])
        .sleeping()?;
    container.exec([PATH, "eat"])?.code_is(137)?;
    events.wait("/tasks/oom", |event| {
        event.text("container_id") == container.id
    })?;
    check_eq!(container.output(["echo", "alive"])?, "alive");
    container.end()
}

fn within(bed: &Bed) -> Result<()> {
    let mount = "type=tmpfs,src=tmpfs,dst=/scratch,options=size=64m";
    let run = bed
        .container()
        .flags(["--memory-limit", "67108864", "--mount", mount]);
    let run = run
        .run([
            "sh",
            "-c",
            "head -c 41943040 /dev/zero > /scratch/f && wc -c < /scratch/f",
        ])?
        .ok()?;
    check_eq!(run.out(), "41943040\n");
    Ok(())
}

fn processes(bed: &Bed) -> Result<()> {
    let script =
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 100 & done; echo unreachable";
    let mut spec = spec(
        &bed.rootfs()?,
        &format!("/{}/pids", bed.namespace),
        &["sh", "-c", script],
    );
    spec["linux"]["resources"]["pids"] = json!({ "limit": 8 });
    let run = bed.container().spec(&spec)?.run([])?;
    anyhow::ensure!(
        run.code != 0,
        "16 processes were possible under a limit of 8"
    );
    check_contains!(run.err(), "fork");
    Ok(())
}

fn cpu(bed: &Bed) -> Result<()> {
    // A fixed amount of work, timed by the container itself: a fifth of a CPU must make it slower,
    // however busy the machine is.
    let script = "now() { cut -d' ' -f1 /proc/uptime | tr -d .; }; \
        a=$(now); i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; b=$(now); echo $((b-a))";
    let free: u64 = bed
        .container()
        .run(["sh", "-c", script])?
        .ok()?
        .out()
        .trim()
        .parse()?;
    let flags = ["--cpu-quota", "20000", "--cpu-period", "100000"];
    let bound: u64 = bed
        .container()
        .flags(flags)
        .run(["sh", "-c", script])?
        .ok()?
        .out()
        .trim()
        .parse()?;
    anyhow::ensure!(
        2 * bound >= 5 * free.max(1),
        "{free} hundredths of a second free, {bound} bound"
    );
    Ok(())
}
