//! Ways out of a container that runtimes have had, each with the attack that it was.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use anyhow::{Result, bail, ensure};
use isopod_tests::{
    Bed, Case, Container, check_contains, check_eq, spec::spec, terminal::Terminal,
};
use serde_json::{Value, json};

use crate::abuse::{POD, SLEEP, annotations, member};

/// How long a terminal may take to say something.
const SOON: Duration = Duration::from_secs(60);

/// The cases.
pub const CASES: &[Case] = &[
    Case::both(
        "a_working_directory_among_the_runtimes_own",
        working_directories,
    )
    .within(180),
    Case::both("nothing_of_the_runtime_is_seen", watch).within(180),
    Case::both("proc_that_is_a_link", linked_proc),
    Case::isopod("places_that_the_container_chose", own_places),
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

/// The attacks of November 2025: what the runtime mounts and writes is where the container's volumes say. In
/// one pod, whose setting of the kernel they are after.
fn own_places(bed: &Bed) -> Result<()> {
    let pod = member(bed, POD, SLEEP, |_| {})?;
    let pattern = || pod.output(["cat", "/proc/sys/kernel/core_pattern"]);
    let before = pattern()?;
    own_mask(bed)?;
    own_console(bed)?;
    own_proc(bed)?;
    check_eq!(pattern()?, before);
    pod.end()
}

/// Mounts `volume` on `destination`, in place of whatever was there and below.
fn on_volume(spec: &mut Value, destination: &str, volume: &Path) {
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        let there = |mount: &Value| {
            let at = mount["destination"].as_str().unwrap_or("");
            Path::new(at).starts_with(destination)
        };
        mounts.retain(|mount| !there(mount));
        mounts.push(
            json!({ "destination": destination, "type": "bind", "source": volume,
            "options": ["rbind", "rw"] }),
        );
    }
}

/// CVE-2025-31133: what covers a masked file is what the container's /dev/null is, and its volume has put a
/// link there.
fn own_mask(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    symlink("/proc/sys/kernel/core_pattern", volume.join("null"))?;
    symlink("/proc/sys/kernel/core_pattern", volume.join("zero"))?;
    let container = member(bed, "masked", SLEEP, |spec| {
        on_volume(spec, "/dev", &volume);
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

/// CVE-2025-52565: the terminal is mounted on /dev/console before anything is protected, from and to names
/// that the container's volume has made links.
fn own_console(bed: &Bed) -> Result<()> {
    const PATTERN: &str = "/proc/sys/kernel/core_pattern";
    let start = |volume: &Path, at: &str| {
        let cgroup = format!("/{}/console", bed.namespace);
        let script = "echo OWNED > /dev/console";
        let mut spec = spec(&bed.rootfs()?, &cgroup, &["sh", "-c", script]);
        spec["annotations"] = annotations("container");
        spec["process"]["terminal"] = json!(true);
        on_volume(&mut spec, at, volume);
        if at == "/dev"
            && let Some(mounts) = spec["mounts"].as_array_mut()
        {
            mounts.push(
                json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"] }),
            );
        }
        let run = bed.container().named("console").spec(&spec)?;
        Terminal::start(&run.command(&["--rm", "--tty"], [])?, 80, 24)
    };

    // The target: what is written to the console is shown on the terminal, wherever it was mounted.
    let volume = bed.volume()?;
    symlink(PATTERN, volume.join("console"))?;
    let mut terminal = start(&volume, "/dev")?;
    terminal.shows("OWNED", SOON)?;
    check_eq!(terminal.finish(SOON)?, 0);

    // The source: the container's terminals are its own, or there is none.
    let volume = bed.volume()?;
    for name in ["ptmx", "0"] {
        symlink(PATTERN, volume.join(name))?;
    }
    let mut terminal = start(&volume, "/dev/pts")?;
    ensure!(terminal.finish(SOON)? != 0, "a terminal of nobody's");
    let _ = bed.ctr_run(["container", "delete", "console"])?;
    Ok(())
}

/// CVE-2019-16884, CVE-2025-52881: what the runtime writes to /proc goes to files that lie there in the
/// container, because it mounted a volume there, by its name or through a link of the image's.
fn own_proc(bed: &Bed) -> Result<()> {
    const FILES: [&str; 4] = [
        "kernel/shm_rmid_forced",
        "kernel/core_pattern",
        "attr/exec",
        "attr/apparmor/exec",
    ];
    let volume = bed.volume()?;
    for file in FILES {
        let file = volume.join(file);
        fs::create_dir_all(file.parent().unwrap_or(&volume))?;
        fs::write(file, "untouched")?;
    }
    let Err(refused) = member(bed, "no-proc", SLEEP, |spec| {
        on_volume(spec, "/proc", &volume)
    }) else {
        bail!("a volume is /proc");
    };
    check_contains!(format!("{refused:#}"), "nothing may hide");
    bed.ctr_run(["container", "delete", "no-proc"])?.ok()?;

    let container = member(bed, "fake-proc", SLEEP, |spec| {
        let rootfs = spec["root"]["path"].as_str().unwrap_or("");
        // That it is there is seen below.
        let _ = symlink("/proc", Path::new(rootfs).join("link"));
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            let bind = |from: &str, to: &str| {
                json!({ "destination": to, "type": "bind", "source": volume.join(from),
                    "options": ["rbind", "rw"] })
            };
            mounts.push(bind("kernel", "/link/sys/kernel"));
            mounts.push(bind("attr", "/link/self/attr"));
            mounts.push(json!({ "destination": "/real", "type": "proc", "source": "proc" }));
        }
        spec["linux"]["sysctl"] = json!({ "kernel.shm_rmid_forced": "1" });
        spec["process"]["oomScoreAdj"] = json!(321);
    })?;
    let says = |file: &str| container.output(["cat", file]);
    check_eq!(says("/proc/sys/kernel/core_pattern")?, "untouched");
    check_eq!(says("/real/sys/kernel/shm_rmid_forced")?, "1");
    check_eq!(says("/real/1/oom_score_adj")?, "321");
    for file in FILES {
        check_eq!(
            fs::read_to_string(volume.join(file))?,
            "untouched",
            "{file}"
        );
    }
    container.end()
}
