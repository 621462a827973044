//! Ways out of a container that runtimes have had, each with the attack that it was.

use std::{fs, os::unix::fs::symlink, time::Duration};

use anyhow::{Result, ensure};
use isopod_tests::{Bed, Case, Container, check_eq, spec::spec};
use serde_json::json;

use crate::abuse::{POD, SLEEP, member};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both(
        "a_working_directory_among_the_runtimes_own",
        working_directories,
    )
    .within(180),
    Case::both("nothing_of_the_runtime_is_seen", watch).within(180),
    Case::both("proc_that_is_a_link", linked_proc),
    Case::isopod("a_mask_that_the_container_chose", own_mask),
];

/// CVE-2024-21626: a descriptor that the runtime has open while it enters a container is its working
/// directory, by number or by a link of the image's.
fn working_directories(bed: &Bed) -> Result<()> {
    let script =
        "for n in $(seq 0 24); do ln -s /proc/self/fd/$n /tmp/link$n; done; exec sleep 100000";
    let container = member(bed, POD, script, |_| {})?;
    container.output(["sh", "-c", "until test -h /tmp/link24; do sleep 0.1; done"])?;
    for number in 0..=24 {
        for cwd in [
            format!("/proc/self/fd/{number}"),
            format!("/tmp/link{number}"),
        ] {
            let found = container.exec_with(&["--cwd", &cwd], ["ls", "-la", ".", "../.."])?;
            ensure!(found.code != 0, "{cwd}: {}", found.out());
            check_eq!(found.out(), "", "{cwd}");
        }
    }
    container.end()
}

/// What of a process that is put into the container can be seen before it executes the container's own
/// program: its binary (CVE-2019-5736), its descriptors, its memory, its root.
fn watch(bed: &Bed) -> Result<()> {
    let script = "echo ready; while :; do for p in /proc/[0-9]*; do \
          e=$(readlink $p/exe) || continue; case $e in */busybox) continue;; esac; \
          echo SAW $e; ls -l $p/fd $p/root/ $p/cwd/; head -c 16 $p/mem; : >> $p/exe; $p/exe; done 2> /dev/null; done";
    let cgroup = format!("/{}/watcher", bed.namespace);
    let spec = spec(&bed.rootfs()?, &cgroup, &["sh", "-c", script]);
    let run = bed.container().named("watcher").spec(&spec)?;
    let mut watcher = run.background([])?;
    watcher.line(Duration::from_secs(60), |line| line == "ready")?;
    let container = Container::existing(bed, "watcher");
    // (A program that says `#!/proc/self/exe` does see the runtime's binary, as itself: whoever runs it can
    // only not write to it, which the case of the runtime's binary tries.)
    for command in ["true", "nosuch"] {
        for _ in 0..8 {
            // Whether it can be executed does not matter.
            let _ = container.exec([command])?;
        }
    }
    let lines = watcher.lines();
    ensure!(!lines.iter().any(|line| line.contains("SAW")), "{lines:?}");
    container.kill("KILL")?;
    watcher.finish(Duration::from_secs(60))?;
    Ok(())
}

/// CVE-2019-19921, CVE-2023-27561: what is mounted on /proc, masked and written there lands where the image's
/// link leads, which a volume can change meanwhile.
fn linked_proc(bed: &Bed) -> Result<()> {
    for place in ["proc", "sys"] {
        let rootfs = bed.dir.join("disk").join(format!("linked-{place}"));
        bed.unpack(&rootfs)?;
        fs::remove_dir(rootfs.join(place))?;
        symlink("/tmp", rootfs.join(place))?;
        let cgroup = format!("/{}/linked", bed.namespace);
        let spec = spec(&rootfs, &cgroup, &["echo", "it runs"]);
        let run = bed.container().named("linked").spec(&spec)?;
        let finished = run.run([])?;
        ensure!(
            finished.code != 0,
            "/{place} that is a link: {}",
            finished.out()
        );
        check_eq!(finished.out(), "");
        // Where there was no task, `ctr run --rm` leaves the container's record.
        let _ = bed.ctr_run(["container", "delete", "linked"])?;
        fs::remove_dir_all(&rootfs)?;
    }
    Ok(())
}

/// CVE-2025-31133: what covers a masked file is what the container's /dev/null is, and its volume has put a
/// link there.
fn own_mask(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    symlink("/proc/sys/kernel/core_pattern", volume.join("null"))?;
    symlink("/proc/sys/kernel/core_pattern", volume.join("zero"))?;
    let container = member(bed, POD, SLEEP, |spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.retain(|mount| {
                !mount["destination"]
                    .as_str()
                    .unwrap_or("")
                    .starts_with("/dev")
            });
            mounts.push(
                json!({ "destination": "/dev", "type": "bind", "source": volume,
                "options": ["rbind", "rw"] }),
            );
        }
        spec["linux"]["maskedPaths"] = json!(["/etc/passwd", "/proc/keys"]);
    })?;
    let stat = container.output(["stat", "-c", "%F %t,%T", "/etc/passwd", "/proc/keys"])?;
    check_eq!(
        stat,
        "character special file 1,3\ncharacter special file 1,3"
    );
    check_eq!(container.exec(["cat", "/etc/passwd"])?.ok()?.out(), "");
    let written = container.exec(["sh", "-c", "echo '|/bin/x' > /dev/null"])?;
    ensure!(written.code != 0, "the core pattern was written");
    container.end()
}
