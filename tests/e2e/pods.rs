//! Several containers in one pod, and many pods at once.

use std::{
    env, fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use isopod_tests::{
    Bed, Case, Container, Runtime, check_eq, leftovers::Snapshot, process, process::eventually,
    procfs,
};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("two_containers_share_a_pod", two_containers).under_both_containerds(),
    Case::both("a_container_of_a_pod_ends_and_another_comes", come_and_go),
    Case::both(
        "a_pod_ends_with_its_containers_deleted_first",
        order_of_deletion,
    ),
    Case::both("a_failed_container_leaves_the_pod_alone", failed_container),
    Case::both("a_pod_is_counted_in_its_own_control_group", control_group),
    Case::both("twenty_pods_at_once_ten_times", many)
        .alone()
        .within(900),
];

const KIND: &str = "io.kubernetes.cri.container-type";
const POD: &str = "io.kubernetes.cri.sandbox-id";

fn start<'b>(bed: &'b Bed, id: &str, pod: &str, arguments: [&str; 2]) -> Result<Container<'b>> {
    let kind = if id == pod { "sandbox" } else { "container" };
    bed.container()
        .named(id)
        .flags([
            "--annotation",
            &format!("{KIND}={kind}"),
            "--annotation",
            &format!("{POD}={pod}"),
        ])
        .start(arguments)
}

fn shims(bed: &Bed) -> Result<usize> {
    Ok(procfs::named(match bed.runtime {
        Runtime::Runc => "containerd-shim-runc-v2",
        Runtime::Isopod => "containerd-shim-isopod-v2",
    })?
    .len())
}

fn machines() -> Result<usize> {
    Ok(procfs::named("qemu-system-x86_64")?.len())
}

const SLEEP: [&str; 2] = ["sleep", "100000"];

/// The caller's path is the group of all that works for the pod: its container's process, or its machine and
/// what serves it. That nothing of the group stays, every case looks at.
fn control_group(bed: &Bed) -> Result<()> {
    let pod = start(bed, "pod", "pod", SLEEP)?;
    let working = match bed.runtime {
        Runtime::Runc => &["sleep"][..],
        Runtime::Isopod => &["isopod-fs", "qemu-system-x86_64"],
    };
    for name in working {
        let found = procfs::named(name)?;
        ensure!(!found.is_empty(), "no process {name}");
        for process in found {
            let groups = fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
            let own = format!("/{}/pod", bed.namespace);
            let counted =
                |line: &&str| line.split(':').nth(1) == Some("memory") || line.starts_with("0:");
            let inside = groups
                .lines()
                .filter(counted)
                .any(|line| line.ends_with(&own));
            ensure!(inside, "{name} is not in {own}: {groups}");
        }
    }
    pod.end()
}

fn boot_id(container: &Container<'_>) -> Result<String> {
    container.output(["cat", "/proc/sys/kernel/random/boot_id"])
}

fn two_containers(bed: &Bed) -> Result<()> {
    let pod = start(bed, "pod", "pod", SLEEP)?;
    let app = start(bed, "app", "pod", SLEEP)?;
    let side = start(bed, "side", "pod", SLEEP)?;
    check_eq!(shims(bed)?, 1, "shims of one pod");
    check_eq!(boot_id(&pod)?, boot_id(&app)?);
    if bed.runtime == Runtime::Isopod {
        check_eq!(machines()?, 1, "virtual machines of one pod");
    }
    // Files and processes stay apart.
    app.exec(["sh", "-c", "echo mine > /tmp/mine"])?.ok()?;
    side.exec(["sh", "-c", "! test -e /tmp/mine"])?.ok()?;
    check_eq!(
        side.output(["sh", "-c", "grep -l sleep /proc/[0-9]*/comm | wc -l"])?,
        "1"
    );
    side.end()?;
    app.end()?;
    pod.end()
}

fn come_and_go(bed: &Bed) -> Result<()> {
    let pod = start(bed, "pod", "pod", SLEEP)?;
    let before = procfs::descriptors(shim_pid(bed)?)?;
    for round in 0..5 {
        let app = start(bed, "app", "pod", SLEEP)?;
        app.exec(["sh", "-c", "exit 3"])?.code_is(3)?;
        app.kill("TERM")?;
        // PID 1 ignores what it does not handle.
        check_eq!(app.status()?.as_deref(), Some("RUNNING"), "round {round}");
        app.end()?;
        check_eq!(pod.status()?.as_deref(), Some("RUNNING"));
    }
    // A sleeping descriptor or two may be cached; a leak would be one for each round.
    eventually(
        "the shim's descriptors are closed",
        Duration::from_secs(10),
        || Ok((procfs::descriptors(shim_pid(bed)?)? < before + 5).then_some(())),
    )?;
    pod.end()
}

fn shim_pid(bed: &Bed) -> Result<u32> {
    let name = match bed.runtime {
        Runtime::Runc => "containerd-shim-runc-v2",
        Runtime::Isopod => "containerd-shim-isopod-v2",
    };
    let shims = procfs::named(name)?;
    check_eq!(shims.len(), 1, "shims");
    Ok(shims.first().map_or(0, |shim| shim.pid))
}

fn order_of_deletion(bed: &Bed) -> Result<()> {
    let pod = start(bed, "pod", "pod", SLEEP)?;
    let app = start(bed, "app", "pod", SLEEP)?;
    pod.kill("KILL")?;
    pod.becomes("STOPPED")?;
    // The pod's own container has ended; its sibling goes on until it is ended too.
    check_eq!(app.output(["echo", "alive"])?, "alive");
    app.end()?;
    pod.end()
}

fn failed_container(bed: &Bed) -> Result<()> {
    let pod = start(bed, "pod", "pod", SLEEP)?;
    for _ in 0..3 {
        ensure!(
            start(bed, "app", "pod", ["no-such-command", ""]).is_err(),
            "it started"
        );
        bed.ctr_run(["container", "delete", "app"])?;
    }
    let app = start(bed, "app", "pod", SLEEP)?;
    check_eq!(app.output(["echo", "alive"])?, "alive");
    app.end()?;
    pod.end()
}

fn number(name: &str, default: usize) -> usize {
    env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn many(bed: &Bed) -> Result<()> {
    let rounds = number("ISOPOD_TEST_ROUNDS", 10);
    let pods = number("ISOPOD_TEST_PODS", 20);
    let before = Snapshot::take(bed)?;
    let mut descriptors = 0;
    for round in 0..rounds {
        let began = Instant::now();
        let ids: Vec<String> = (0..pods).map(|pod| format!("r{round}-p{pod}")).collect();
        let limit = Duration::from_secs(180);
        let mut threads = Vec::new();
        for id in &ids {
            let run = bed.container().named(id);
            let mut command = run.command(&["--detach", "--null-io"], SLEEP)?;
            threads.push(thread::spawn(move || {
                process::run(&mut command, None, limit)?.ok()
            }));
        }
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        let started = began.elapsed();
        check_eq!(shims(bed)?, pods, "shims in round {round}");
        for id in [ids.first(), ids.last()].into_iter().flatten() {
            check_eq!(
                Container::existing(bed, id).output(["echo", "alive"])?,
                "alive"
            );
        }
        let mut threads = Vec::new();
        for id in &ids {
            let mut commands = [bed.ctr(), bed.ctr()];
            commands[0].args(["task", "delete", "--force", id]);
            commands[1].args(["container", "delete", id]);
            threads.push(thread::spawn(move || -> Result<()> {
                for command in &mut commands {
                    process::run(command, None, limit)?;
                }
                Ok(())
            }));
        }
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        before.assert_restored(bed)?;
        let open = procfs::descriptors(bed.containerd().pid())?;
        eprintln!(
            "round {round}: started in {started:?}, all in {:?}, containerd has {open} files",
            began.elapsed()
        );
        if round == 0 {
            descriptors = open;
        }
        ensure!(
            open <= descriptors + 5,
            "containerd's descriptors grew from {descriptors} to {open}"
        );
    }
    Ok(())
}
