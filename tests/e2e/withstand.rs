//! More of what a container may do to its pod: full disks, devices, mounts, settings, many lives. The
//! pod's quiet container is asked after each.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use isopod_tests::{
    Bed, Case, check_contains, check_eq, process,
    shim::{Empty, Shim, api},
    spec::{privilege, spec},
};
use serde_json::json;

use crate::abuse::{POD, SLEEP, all_capabilities, is_well, member};

/// The cases.
pub const CASES: &[Case] = &[
    Case::isopod("every_device_is_opened", devices).within(300),
    Case::both("full_disks", full_disks).within(180),
    Case::both("sigterm_is_ignored", ignores_sigterm),
    Case::both("output_is_closed_early", closes_output),
    Case::isopod("everything_is_mounted_anew", remounts).within(180),
    Case::both("kernel_settings_are_written", settings).within(180),
    Case::both("a_thousand_short_lives", short_lives).within(600),
];

/// Character and block devices of every major number, made and opened.
const OPENS: &str = "cd /tmp; for kind in c b; do for major in $(seq 0 255); do for minor in 0 1 2 64 223; do \
     mknod d $kind $major $minor 2> /dev/null || continue; \
     timeout -s KILL 2 sh -c 'true <> d || true < d' 2> /dev/null; rm -f d; done; done; done; \
     for d in $(find /dev -type c -o -type b); do timeout -s KILL 2 sh -c \"true <> $d\" 2> /dev/null; done; \
     echo all; exec sleep 100000";

fn devices(bed: &Bed) -> Result<()> {
    let quiet = member(bed, POD, SLEEP, |_| {})?;
    let cgroup = format!("/{}/opener", bed.namespace);
    let mut spec = spec(&bed.rootfs()?, &cgroup, &["sh", "-c", OPENS]);
    privilege(&mut spec, all_capabilities(bed)?);
    spec["annotations"] = crate::abuse::annotations("container");
    let run = bed.container().named("opener").spec(&spec)?;
    let mut opener = run.background([])?;
    opener.line(Duration::from_secs(240), |line| line == "all")?;
    is_well(&quiet)?;
    bed.ctr_run(["task", "kill", "--signal", "KILL", "opener"])?
        .ok()?;
    opener.finish(Duration::from_secs(60))?;
    quiet.end()
}

/// A memory-backed disk of the container's, and a directory of the host whose disk is full.
fn full_disks(bed: &Bed) -> Result<()> {
    let quiet = member(bed, POD, SLEEP, |_| {})?;
    let volume = bed.volume()?;
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
        .arg(&volume);
    process::run(&mut mount, None, Duration::from_secs(30))?.ok()?;
    let hoarder = member(bed, "hoarder", SLEEP, |spec| {
        let small = json!({ "destination": "/small", "type": "tmpfs", "source": "tmpfs",
            "options": ["size=4m", "nosuid"] });
        let shared = json!({ "destination": "/shared", "type": "bind", "source": volume,
            "options": ["rbind", "rw"] });
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.extend([small, shared]);
        }
    })?;
    for disk in ["/small", "/shared"] {
        let fill = format!("dd if=/dev/zero of={disk}/fill bs=64k");
        let filled = hoarder.exec(["sh", "-c", &fill])?;
        ensure!(filled.code != 0, "{disk} has no end");
        check_contains!(filled.err(), "No space left on device");
        // Neither the container nor what is run in it needs the disk.
        check_eq!(hoarder.output(["echo", "still"])?, "still");
        is_well(&quiet)?;
        let again = format!("rm {disk}/fill && echo new > {disk}/file && cat {disk}/file");
        check_eq!(hoarder.output(["sh", "-c", &again])?, "new");
    }
    hoarder.end()?;
    is_well(&quiet)?;
    quiet.end()?;
    process::run(
        Command::new("umount").arg(&volume),
        None,
        Duration::from_secs(30),
    )?
    .ok()?;
    Ok(())
}

fn ignores_sigterm(bed: &Bed) -> Result<()> {
    let run = bed.container();
    let script = "trap '' TERM; echo deaf; while :; do sleep 0.1; done";
    let mut deaf = run.background(["sh", "-c", script])?;
    deaf.line(Duration::from_secs(60), |line| line == "deaf")?;
    for _ in 0..3 {
        bed.ctr_run(["task", "kill", "--signal", "TERM", run.id()])?
            .ok()?;
    }
    let container = isopod_tests::Container::existing(bed, run.id());
    check_eq!(container.output(["echo", "runs"])?, "runs");
    container.kill("KILL")?;
    check_eq!(deaf.finish(Duration::from_secs(60))?, 137);
    Ok(())
}

fn closes_output(bed: &Bed) -> Result<()> {
    let script = "echo first; exec > /dev/null 2>&1; sleep 1; echo lost; exit 5";
    let finished = bed.container().run(["sh", "-c", script])?.code_is(5)?;
    check_eq!(finished.out(), "first\n");
    let script = "exec >&- 2>&- <&-; sleep 1; exit 6";
    bed.container().run(["sh", "-c", script])?.code_is(6)?;
    Ok(())
}

/// Every mount of the container made read-only, writable, another's child, and away.
const REMOUNTS: &str = "for m in $(cut -d' ' -f5 /proc/self/mountinfo); do mount -o remount,ro $m; \
     mount -o remount,rw,dev,suid,exec $m; mount -o remount,bind,ro $m; done 2> /dev/null; \
     mkdir -p /tmp/a /tmp/b; for i in $(seq 200); do mount -t tmpfs t /tmp/a; mount --bind / /tmp/b; done; \
     mount -t proc p /tmp/a; mount -t sysfs s /tmp/a; mount -t cgroup2 c /tmp/a; \
     mount -o remount,ro /tmp/a; mount --make-rshared /; mount --move /proc /tmp/b; umount -l /dev; \
     umount -l /sys; echo all; exec sleep 100000";

fn remounts(bed: &Bed) -> Result<()> {
    let quiet = member(bed, POD, SLEEP, |_| {})?;
    let before = quiet.output(["cat", "/proc/1/mountinfo"])?;
    let cgroup = format!("/{}/mounter", bed.namespace);
    let mut spec = spec(&bed.rootfs()?, &cgroup, &["sh", "-c", REMOUNTS]);
    privilege(&mut spec, all_capabilities(bed)?);
    spec["annotations"] = crate::abuse::annotations("container");
    let run = bed.container().named("mounter").spec(&spec)?;
    let mut mounter = run.background([])?;
    mounter.line(Duration::from_secs(120), |line| line == "all")?;
    is_well(&quiet)?;
    check_eq!(quiet.output(["cat", "/proc/1/mountinfo"])?, before);
    // The control groups, the mounts of the pod: a container can still be made.
    member(bed, "next", SLEEP, |_| {})?.end()?;
    bed.ctr_run(["task", "kill", "--signal", "KILL", "mounter"])?
        .ok()?;
    mounter.finish(Duration::from_secs(60))?;
    is_well(&quiet)?;
    quiet.end()
}

/// Without privileges: each is refused.
fn settings(bed: &Bed) -> Result<()> {
    let quiet = member(bed, POD, SLEEP, |_| {})?;
    let writer = member(bed, "writer", SLEEP, |_| {})?;
    let write =
        "for f in $(find /proc/sys -type f); do (echo 1 > $f) 2> /dev/null && echo $f; done; true";
    check_eq!(writer.output(["sh", "-c", write])?, "");
    let trigger = writer.exec(["sh", "-c", "echo c > /proc/sysrq-trigger"])?;
    ensure!(trigger.code != 0, "/proc/sysrq-trigger can be written");
    is_well(&quiet)?;
    writer.end()?;
    quiet.end()
}

/// Asked directly: a thousand calls of `ctr` would be most of it.
fn short_lives(bed: &Bed) -> Result<()> {
    let rootfs = bed.rootfs()?;
    let spec_of = |id: &str, command: &[&str]| {
        let mut spec = spec(&rootfs, &format!("/{}/{id}", bed.namespace), command);
        let kind = if id == POD { "sandbox" } else { "container" };
        spec["annotations"] = crate::abuse::annotations(kind);
        spec
    };
    let first = spec_of(POD, &["sleep", "100000"]);
    let shim = Shim::start(bed, POD, &first)?;
    let mut caller = shim.caller()?;
    caller.ask::<Empty>("Create", &shim.creation(POD, &first)?)?;
    caller.start(POD, "")?;
    let mut life = |id: &str, exec: &str, code: u32| -> Result<()> {
        caller.start(id, exec)?;
        check_eq!(caller.wait(id, exec)?, code, "{id} {exec}");
        check_eq!(caller.delete(id, exec)?, code, "{id} {exec}");
        Ok(())
    };
    let began = Instant::now();
    for number in 0..containers() {
        let id = format!("short{number}");
        let made = shim.creation(&id, &spec_of(&id, &["sh", "-c", "exit 7"]))?;
        shim.caller()?.ask::<Empty>("Create", &made)?;
        life(&id, "", 7)?;
    }
    let took = began.elapsed();
    eprintln!("{} containers took {took:?}", containers());
    let began = Instant::now();
    for number in 0..EXECS {
        let exec = format!("e{number}");
        shim.caller()?.exec(POD, &exec, &["sh", "-c", "exit 8"])?;
        life(POD, &exec, 8)?;
    }
    eprintln!("{EXECS} execs took {:?}", began.elapsed());
    let request = api::PidsRequest {
        id: POD.to_owned(),
        ..api::PidsRequest::default()
    };
    let pids: api::PidsResponse = caller.ask("Pids", &request)?;
    check_eq!(pids.processes.len(), 1, "processes of the pod");
    caller.end(POD)?;
    shim.shut_down(POD)
}

const EXECS: u32 = 1000;

/// A thousand by `ISOPOD_SHORT_LIVES=1000`; a container costs a software CPU a few tenths of a second.
fn containers() -> u32 {
    let asked = std::env::var("ISOPOD_SHORT_LIVES").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(100)
}
