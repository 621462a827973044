//! Deaths outside the pod: of containerd, which must not matter, and of the shim, which must leave nothing.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use isopod_tests::{
    Bed, Case, Container, Runtime, check_eq, process::eventually, procfs, spec::spec,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("containerd_restarts", restart),
    Case::both("containerd_is_killed", killed).under_both_containerds(),
    Case::both("a_task_ends_while_containerd_is_away", ends_meanwhile),
    Case::both("the_shim_is_killed", shim_killed).under_both_containerds(),
    Case::both("poststop_runs_though_the_shim_is_killed", owed_hooks),
    Case::both(
        "the_shim_is_killed_while_containerd_is_away",
        shim_killed_meanwhile,
    ),
];

fn shim_of(bed: &Bed) -> Result<u32> {
    let name = match bed.runtime {
        Runtime::Runc => "containerd-shim-runc-v2",
        Runtime::Isopod => "containerd-shim-isopod-v2",
    };
    let shims = procfs::named(name)?;
    check_eq!(shims.len(), 1, "shims: {shims:?}");
    shims.first().map(|shim| shim.pid).context("a shim")
}

fn kill_now(pid: u32) -> Result<()> {
    Ok(kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?)
}

/// The container goes on while containerd is away, and everything works when it is back.
fn survives(bed: &Bed, signal: Signal) -> Result<()> {
    let volume = bed.volume()?;
    let tick = "while true; do echo x >> /data/ticks; sleep 0.1; done";
    let container = bed
        .container()
        .bind(&volume, "/data", "rw")
        .start(["sh", "-c", tick])?;
    let ticks = || fs::metadata(volume.join("ticks")).map_or(0, |file| file.len());
    eventually("it ticks", Duration::from_secs(20), || {
        Ok((ticks() > 0).then_some(()))
    })?;
    let shim = shim_of(bed)?;
    bed.containerd().end(signal)?;
    let then = ticks();
    let what = "it ticks without containerd";
    eventually(what, Duration::from_secs(20), || {
        Ok((ticks() > then + 4).then_some(()))
    })?;
    bed.containerd().begin()?;
    check_eq!(container.status()?.as_deref(), Some("RUNNING"));
    check_eq!(shim_of(bed)?, shim, "the shim's pid");
    check_eq!(container.output(["echo", "works"])?, "works");
    container.exec(["sh", "-c", "exit 6"])?.code_is(6)?;
    let mut events = bed.events()?;
    container.kill("KILL")?;
    let exit = events.wait("/tasks/exit", |event| event.text("id") == container.id)?;
    check_eq!(exit.number("exit_status"), 137);
    container.becomes("STOPPED")?;
    container.end()
}

fn restart(bed: &Bed) -> Result<()> {
    survives(bed, Signal::SIGTERM)
}

fn killed(bed: &Bed) -> Result<()> {
    survives(bed, Signal::SIGKILL)
}

fn ends_meanwhile(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    let wait = "until test -e /data/go; do sleep 0.1; done; exit 23";
    let container = bed
        .container()
        .bind(&volume, "/data", "rw")
        .start(["sh", "-c", wait])?;
    bed.containerd().end(Signal::SIGKILL)?;
    fs::write(volume.join("go"), "")?;
    std::thread::sleep(Duration::from_secs(2));
    bed.containerd().begin()?;
    container.becomes("STOPPED")?;
    check_eq!(container.delete_task()?, 23);
    container.remove()
}

/// What was running is gone, and containerd says so.
fn is_gone(bed: &Bed, container: &Container<'_>) -> Result<()> {
    eventually(
        "containerd says that it does not run",
        Duration::from_secs(30),
        || {
            let status = container.status()?;
            Ok((status.as_deref() != Some("RUNNING")).then_some(()))
        },
    )?;
    eventually("its processes are gone", Duration::from_secs(15), || {
        let mut left = Vec::new();
        for name in ["sleep", "qemu-system-x86_64", "isopod-fs", "isopod-jail"] {
            left.extend(procfs::named(name)?);
        }
        Ok(left.is_empty().then_some(()))
    })?;
    if container.status()?.is_some() {
        container.delete_task()?;
    }
    bed.ctr_run(["container", "delete", &container.id])?.ok()?;
    // The same id can be used again.
    bed.container()
        .named(&container.id)
        .run(["true"])?
        .ok()
        .map(drop)
}

fn shim_killed(bed: &Bed) -> Result<()> {
    let mut events = bed.events()?;
    let container = bed.container().sleeping()?;
    kill_now(shim_of(bed)?)?;
    let exit = events.wait("/tasks/exit", |event| event.text("id") == container.id)?;
    check_eq!(exit.number("exit_status"), 137);
    is_gone(bed, &container)
}

/// What a first hook made, a last one removes, whoever lives to run it: once.
fn owed_hooks(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    let said = volume.join("said");
    let script = format!("cat >> {0}; echo >> {0}", said.display());
    let cgroup = format!("/{}/hooked", bed.namespace);
    let mut spec = spec(&bed.rootfs()?, &cgroup, &["sleep", "100000"]);
    spec["hooks"] = json!({ "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", script],
        "env": ["PATH=/usr/bin:/bin"] }] });
    let container = bed.container().named("hooked").spec(&spec)?.start([])?;
    kill_now(shim_of(bed)?)?;
    let what = "the hook runs";
    eventually(what, Duration::from_secs(60), || {
        Ok(fs::read_to_string(&said)
            .is_ok_and(|text| text.contains("stopped"))
            .then_some(()))
    })?;
    is_gone(bed, &container)?;
    let told = fs::read_to_string(&said)?;
    check_eq!(told.matches("ociVersion").count(), 1, "{told}");
    Ok(())
}

fn shim_killed_meanwhile(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let shim = shim_of(bed)?;
    bed.containerd().end(Signal::SIGKILL)?;
    kill_now(shim)?;
    bed.containerd().begin()?;
    is_gone(bed, &container)
}
