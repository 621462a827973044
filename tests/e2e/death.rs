//! What dies while a pod runs: every process of the pod is told as ended, with a reason, and nothing stays.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isopod_tests::{
    Background, Bed, Case, Container, check_contains, check_eq,
    events::Events,
    process::eventually,
    procfs,
    spec::{privilege, spec},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The cases.
pub const CASES: &[Case] = &[
    Case::isopod("the_monitor_is_killed", monitor_killed)
        .under_both_containerds()
        .smoke_at_the_end(),
    Case::isopod("the_monitor_is_killed_with_two_containers", two_containers),
    Case::isopod("the_file_server_is_killed", file_server_killed),
    Case::isopod("the_guest_kernel_panics", kernel_panics).with_probe(),
    Case::isopod(
        "the_monitor_is_stopped_and_the_task_killed",
        monitor_stopped,
    ),
    Case::isopod("the_monitor_is_killed_during_a_stream", killed_streaming).with_probe(),
];

fn kill_program(name: &str, signal: Signal) -> Result<()> {
    let found = procfs::named(name)?;
    ensure!(!found.is_empty(), "{name} does not run");
    for process in found {
        kill(Pid::from_raw(process.pid.cast_signed()), signal)?;
    }
    Ok(())
}

/// What a pod's guest runs in, whichever engine it is.
const MONITORS: [&str; 2] = ["qemu-system-x86_64", "isopod-vmm"];

fn kill_monitor(signal: Signal) -> Result<()> {
    let mut runs = None;
    for name in MONITORS {
        if !procfs::named(name)?.is_empty() {
            runs = Some(name);
        }
    }
    kill_program(runs.context("no monitor runs")?, signal)
}

/// The virtual machine's processes are gone.
fn nothing_runs() -> Result<()> {
    eventually(
        "the pod's processes are gone",
        Duration::from_secs(20),
        || {
            let names = MONITORS.into_iter().chain(["isopod-fs", "isopod-jail"]);
            let mut left = Vec::new();
            for name in names {
                left.extend(procfs::named(name)?);
            }
            Ok(left.is_empty().then_some(()))
        },
    )
}

fn exited(events: &mut Events, id: &str) -> Result<()> {
    let exit = events.wait("/tasks/exit", |event| event.text("id") == id)?;
    check_eq!(exit.number("exit_status"), 137, "exit status of {id}");
    Ok(())
}

/// An exec that runs until the end, and says that it runs.
fn lasting_exec(bed: &Bed, container: &Container<'_>) -> Result<Background> {
    let mut command = bed.ctr();
    let script = "echo up; exec sleep 1000";
    command.args([
        "task",
        "exec",
        "--exec-id",
        "lasting",
        &container.id,
        "sh",
        "-c",
        script,
    ]);
    let mut exec = Background::start(&mut command)?;
    exec.line(Duration::from_secs(60), |line| line == "up")?;
    Ok(exec)
}

/// The container and its exec are told as ended; the log has the reason; all can be deleted.
fn ends(
    bed: &Bed,
    container: &Container<'_>,
    cause: impl FnOnce() -> Result<()>,
    reason: &str,
) -> Result<()> {
    let mut events = bed.events()?;
    let mut exec = lasting_exec(bed, container)?;
    cause()?;
    exited(&mut events, "lasting")?;
    exited(&mut events, &container.id)?;
    check_eq!(exec.finish(Duration::from_secs(30))?, 137);
    nothing_runs()?;
    container.becomes("STOPPED")?;
    let late = container.exec(["true"])?;
    ensure!(late.code != 0, "an exec in a dead pod succeeded");
    check_contains!(bed.log(), reason);
    check_eq!(container.delete_task()?, 137);
    container.remove()
}

fn monitor_killed(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    ends(
        bed,
        &container,
        || kill_monitor(Signal::SIGKILL),
        "killed by signal",
    )
}

fn two_containers(bed: &Bed) -> Result<()> {
    let flags = |kind: &str| {
        [
            "--annotation".to_owned(),
            format!("io.kubernetes.cri.container-type={kind}"),
            "--annotation".to_owned(),
            "io.kubernetes.cri.sandbox-id=pod".to_owned(),
        ]
    };
    let start = |id: &str, kind: &str| {
        let flags = flags(kind);
        bed.container()
            .named(id)
            .flags(flags.each_ref().map(String::as_str))
            .sleeping()
    };
    let (pod, app) = (start("pod", "sandbox")?, start("app", "container")?);
    let mut events = bed.events()?;
    kill_monitor(Signal::SIGKILL)?;
    exited(&mut events, "pod")?;
    exited(&mut events, "app")?;
    nothing_runs()?;
    app.end()?;
    pod.end()
}

fn file_server_killed(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    ends(
        bed,
        &container,
        || kill_program("isopod-fs", Signal::SIGKILL),
        "isopod-fs",
    )
}

fn kernel_panics(bed: &Bed) -> Result<()> {
    // A privileged container may tell its own kernel to panic when a control group runs out of memory.
    let mut spec = spec(
        &bed.rootfs()?,
        &format!("/{}/panics", bed.namespace),
        &["sleep", "100000"],
    );
    privilege(&mut spec, u64::MAX);
    spec["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 33_554_432 });
    let container = bed.container().spec(&spec)?.start([])?;
    container
        .exec(["sh", "-c", "echo 2 > /proc/sys/vm/panic_on_oom"])?
        .ok()?;
    let mut eater = None;
    let cause = || {
        let mut command = container.exec_command(&[], [isopod_tests::probe::PATH, "eat"]);
        eater = Some(Background::start(&mut command)?);
        Ok(())
    };
    ends(bed, &container, cause, "Kernel panic - not syncing")?;
    let code = eater
        .context("the eater")?
        .finish(Duration::from_secs(30))?;
    check_eq!(code, 137);
    Ok(())
}

fn monitor_stopped(bed: &Bed) -> Result<()> {
    // A virtual machine that hangs must not make the pod undeletable.
    bed.settings
        .borrow_mut()
        .set("timeouts", "request", 20)
        .set("timeouts", "shutdown", 1);
    let container = bed.container().sleeping()?;
    kill_monitor(Signal::SIGSTOP)?;
    let force = bed.ctr_run(["task", "delete", "--force", &container.id])?;
    if force.code != 0 {
        // Refused or timed out: then a second try, after the VM was given up, must succeed.
        bed.ctr_run(["task", "delete", "--force", &container.id])?;
    }
    nothing_runs()?;
    eventually("the task is gone", Duration::from_secs(20), || {
        Ok(container
            .status()?
            .is_none_or(|status| status == "STOPPED")
            .then_some(()))
    })?;
    if container.status()?.is_some() {
        container.delete_task()?;
    }
    container.remove()
}

fn killed_streaming(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let path = isopod_tests::probe::PATH;
    let mut child = container
        .exec_command(&[], [path, "emit", "1000000000000"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdout.take().context("a pipe")?;
    let mut first = vec![0; 1_000_000];
    std::io::Read::read_exact(&mut pipe, &mut first)?;
    kill_monitor(Signal::SIGKILL)?;
    std::io::copy(&mut pipe, &mut std::io::sink())?;
    check_eq!(child.wait()?.code(), Some(137));
    nothing_runs()?;
    container.end()
}
