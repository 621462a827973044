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
    // What it and its children use in some seconds by the container's own clocks. A busy machine gives
    // less, never more.
    let script = "now() { cut -d' ' -f1 /proc/uptime | tr -d .; }; \
        a=$(now); until [ $(($(now)-a)) -ge 400 ]; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; done; \
        b=$(now); set -- $(cat /proc/$$/stat); echo $((${14}+${15}+${16}+${17})) $((b-a))";
    let flags = ["--cpu-quota", "20000", "--cpu-period", "100000"];
    let run = bed.container().flags(flags);
    let told = run.run(["sh", "-c", script])?.ok()?.out();
    let figures: Vec<u64> = told
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [used, passed] = figures[..] else {
        anyhow::bail!("not two numbers: {told:?}");
    };
    anyhow::ensure!(passed >= 400 && used > 0, "{told:?}");
    anyhow::ensure!(
        100 * used <= 40 * passed,
        "of {passed} hundredths of a second it used {used}, more than a fifth"
    );
    Ok(())
}
