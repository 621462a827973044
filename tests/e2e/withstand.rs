//! More of what a container may do to its pod: many processes, full disks, devices, mounts, settings. The
//! pod's quiet container is asked after each.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use isopod_tests::{
    Bed, Case, check_contains, check_eq,
    process::{self, eventually},
    spec::{privilege, spec},
};
use serde_json::json;

use crate::abuse::{POD, SLEEP, all_capabilities, is_well, member};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("ten_thousand_zombies", zombies).within(240),
    Case::isopod("every_device_is_opened", devices).within(300),
    Case::both("full_disks", full_disks).within(180),
    Case::both("sigterm_is_ignored", ignores_sigterm),
    Case::both("output_is_closed_early", closes_output),
    Case::isopod("everything_is_mounted_anew", remounts).within(180),
    Case::both("kernel_settings_are_written", settings).within(180),
];

/// Children of init, which is `sleep` and does not know that it has any: each waits for the end of its own
/// parent, which alone keeps the pipe open for writing.
const NEST: &str = "mkfifo /tmp/f; b=0; while [ $b -lt 50 ]; do \
     (exec 3<>/tmp/f; i=0; while [ $i -lt 201 ]; do (exec 4</tmp/f 3<&-; read x <&4) & i=$((i+1)); done); \
     b=$((b+1)); done";

fn zombies(bed: &Bed) -> Result<()> {
    let quiet = member(bed, POD, SLEEP, |_| {})?;
    let nest = member(bed, "nest", SLEEP, |_| {})?;
    let began = Instant::now();
    let mut fork = nest.exec_command(&[], ["sh", "-c", NEST]);
    process::run(&mut fork, None, Duration::from_secs(300))?.ok()?;
    eventually("10 000 zombies", Duration::from_secs(60), || {
        let told = bed.ctr_run(["task", "metrics", "nest"])?.ok()?.out();
        let count = told
            .lines()
            .find_map(|line| line.strip_prefix("pids.current "));
        let count: u32 = count.unwrap_or("0").trim().parse()?;
        Ok((count > 10_000).then_some(()))
    })?;
    eprintln!("10 000 zombies after {:?}", began.elapsed());
    is_well(&quiet)?;
    check_eq!(nest.output(["echo", "still"])?, "still");
    nest.end()?;
    is_well(&quiet)?;
    quiet.end()
}

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
