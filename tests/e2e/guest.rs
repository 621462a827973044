//! What a virtual machine of its own means: another kernel, its own clock, and walls on the host.

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use isopod_tests::{Bed, Case, check_contains, check_eq, probe::PATH, process, procfs};

/// The cases.
pub const CASES: &[Case] = &[
    Case::isopod("has_its_own_kernel", own_kernel),
    Case::isopod("two_pods_have_two_kernels", two_kernels),
    Case::isopod("its_processes_are_not_the_hosts", processes),
    Case::isopod("clock_follows_the_host", clock)
        .with_probe()
        .alone(),
    Case::isopod("qemu_is_confined", qemu_confined),
    Case::isopod("the_file_server_is_confined", file_server_confined),
    Case::isopod("pod_directory_is_closed_to_others", pod_directory),
    Case::isopod("log_names_pod_and_container", log),
    Case::isopod("memory_is_what_the_settings_say", memory),
    Case::isopod("an_allowed_annotation_is_honoured", annotation),
    Case::isopod("guest_memory_follows_the_limit", memory_limit),
    Case::isopod("processors_follow_the_quota", processors),
    Case::isopod("two_processors_run_its_programs", two_processors).smoke(),
    Case::isopod("has_only_a_loopback_interface", network),
];

fn own_kernel(bed: &Bed) -> Result<()> {
    let guest = bed.container().run(["uname", "-r"])?.ok()?.out();
    let host = process::run(
        Command::new("uname").arg("-r"),
        None,
        Duration::from_secs(5),
    )?
    .ok()?
    .out();
    ensure!(guest != host, "the guest has the host's kernel {host}");
    check_contains!(guest, "isopod");
    Ok(())
}

fn two_kernels(bed: &Bed) -> Result<()> {
    let ids: Vec<String> = (0..2)
        .map(|_| {
            Ok(bed
                .container()
                .run(["cat", "/proc/sys/kernel/random/boot_id"])?
                .ok()?
                .out())
        })
        .collect::<Result<_>>()?;
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    ensure!(
        ids[0] != ids[1] && !ids.contains(&host),
        "boot ids {ids:?}, the host's {host}"
    );
    Ok(())
}

fn processes(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let seen = procfs::named("sleep")?;
    ensure!(seen.is_empty(), "the host sees {seen:?}");
    container.end()
}

fn clock(bed: &Bed) -> Result<()> {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|time| time.as_nanos())
    };
    let container = bed.container().sleeping()?;
    // What the host's measurement and the guest's frequency may be wrong by, on a machine under load.
    let margin = 100_000_000;
    for _ in 0..4 {
        let before = now()?;
        let guest: u128 = container.output([PATH, "clock"])?.parse()?;
        let after = now()?;
        eprintln!(
            "the guest's clock lies {:.1} % between the ends of {} ms",
            (guest as f64 - before as f64) / (after - before) as f64 * 100.0,
            (after - before) / 1_000_000
        );
        ensure!(
            (before - margin..after + margin).contains(&guest),
            "the guest's clock is {guest}, the host's between {before} and {after}"
        );
        std::thread::sleep(Duration::from_secs(3));
    }
    container.end()
}

/// Which namespaces a process has, as the kernel names them.
fn namespaces(pid: u32) -> Result<BTreeMap<String, String>> {
    let dir = format!("/proc/{pid}/ns");
    fs::read_dir(&dir)?
        .map(|entry| {
            let entry = entry?;
            let target = fs::read_link(entry.path())?;
            Ok((
                entry.file_name().display().to_string(),
                target.display().to_string(),
            ))
        })
        .collect()
}

fn one(program: &str) -> Result<u32> {
    let found = procfs::named(program)?;
    check_eq!(found.len(), 1, "{program}: {found:?}");
    found
        .first()
        .map(|process| process.pid)
        .context("the process")
}

fn walls(pid: u32, kinds: &[&str]) -> Result<()> {
    let (theirs, ours) = (namespaces(pid)?, namespaces(std::process::id())?);
    for kind in kinds {
        ensure!(
            theirs[*kind] != ours[*kind],
            "it shares the {kind} namespace"
        );
    }
    check_eq!(procfs::status(pid, "Seccomp")?, "2", "seccomp mode");
    check_eq!(procfs::status(pid, "NoNewPrivs")?, "1", "no_new_privs");
    Ok(())
}

/// What a process finds in a directory of its root.
fn root_of(pid: u32, dir: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/root/{dir}"))? {
        names.push(entry?.file_name().display().to_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn qemu_confined(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let qemu = one("qemu-system-x86_64")?;
    walls(qemu, &["mnt", "pid", "net", "ipc", "uts"])?;
    for name in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
        check_eq!(procfs::status(qemu, name)?, "0000000000000000", "{name}");
    }
    let uids = procfs::status(qemu, "Uid")?;
    ensure!(
        uids.split_whitespace().all(|uid| uid != "0"),
        "runs as {uids}"
    );
    check_eq!(procfs::status(qemu, "Groups")?, "", "supplementary groups");
    let root = root_of(qemu, "")?;
    for name in [
        "home", "mnt", "opt", "proc", "root", "run", "srv", "sys", "var",
    ] {
        ensure!(
            !root.iter().any(|have| have == name),
            "its root has {root:?}"
        );
    }
    // What the dynamic linker reads, and nothing of the host's configuration.
    let etc = root_of(qemu, "etc")?;
    let linker = ["alternatives", "ld.so.cache"];
    ensure!(
        etc.iter().all(|name| linker.contains(&name.as_str())),
        "its /etc has {etc:?}"
    );
    container.end()
}

fn file_server_confined(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let server = one("isopod-fs")?;
    walls(server, &["mnt", "pid", "net", "ipc", "uts"])?;
    // What serving files as other users needs, and nothing that changes the system.
    let held = u64::from_str_radix(&procfs::status(server, "CapEff")?, 16)?;
    for (name, bit) in [
        ("SYS_ADMIN", 21),
        ("NET_ADMIN", 12),
        ("SYS_PTRACE", 19),
        ("SYS_MODULE", 16),
        ("SYS_CHROOT", 18),
    ] {
        ensure!(held & (1 << bit) == 0, "it holds CAP_{name} ({held:x})");
    }
    let root = root_of(server, "")?;
    ensure!(root == [container.id.clone()], "its root has {root:?}");
    container.end()
}

fn pod_directory(bed: &Bed) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let container = bed.container().sleeping()?;
    let mut pods = 0;
    for pod in fs::read_dir("/run/isopod")? {
        let found = pod?.metadata()?;
        check_eq!(
            (found.uid(), found.mode() & 0o077),
            (0, 0),
            "owner and mode of the pod's directory"
        );
        pods += 1;
    }
    check_eq!(pods, 1);
    container.end()
}

fn log(bed: &Bed) -> Result<()> {
    let container = bed.container().named("the-container").sleeping()?;
    container.end()?;
    let log = bed.log();
    let ours: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("io.containerd.isopod.v2"))
        .collect();
    ensure!(
        ours.iter()
            .any(|line| line.contains("the-container") && line.contains(&bed.namespace)),
        "no line names the container:\n{}",
        ours.join("\n")
    );
    Ok(())
}

fn total_mib(run: &str) -> Result<u64> {
    let line = run
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .context("MemTotal")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}

fn memory(bed: &Bed) -> Result<()> {
    bed.settings.borrow_mut().set("vm", "memory_mib", 300);
    let total = total_mib(&bed.container().run(["cat", "/proc/meminfo"])?.ok()?.out())?;
    ensure!((240..=300).contains(&total), "{total} MiB of 300");
    Ok(())
}

fn annotation(bed: &Bed) -> Result<()> {
    bed.settings
        .borrow_mut()
        .set("annotations", "allowed", "[\"io.isopod.memory_mib\"]");
    let run = bed
        .container()
        .flags(["--annotation", "io.isopod.memory_mib=700"]);
    let total = total_mib(&run.run(["cat", "/proc/meminfo"])?.ok()?.out())?;
    ensure!((600..=700).contains(&total), "{total} MiB of 700");
    Ok(())
}

fn memory_limit(bed: &Bed) -> Result<()> {
    bed.settings.borrow_mut().set("vm", "memory_mib", 256);
    let run = bed.container().flags(["--memory-limit", "536870912"]);
    let total = total_mib(&run.run(["cat", "/proc/meminfo"])?.ok()?.out())?;
    ensure!((650..=768).contains(&total), "{total} MiB of 256 + 512");
    Ok(())
}

fn processors(bed: &Bed) -> Result<()> {
    check_eq!(bed.container().run(["nproc"])?.ok()?.out(), "1\n");
    let flags = ["--cpu-quota", "200000", "--cpu-period", "100000"];
    check_eq!(
        bed.container().flags(flags).run(["nproc"])?.ok()?.out(),
        "2\n"
    );
    Ok(())
}

fn two_processors(bed: &Bed) -> Result<()> {
    bed.settings.borrow_mut().set("vm", "cpus", 2);
    // Field 39 of a process's stat is where it ran last; field 2 is the shell's name.
    let script = "read -r online </sys/devices/system/cpu/online; echo $online; \
        for mask in 1 2; do taskset $mask sh -c 'set -- $(cat /proc/self/stat); shift 38; echo $1'; done";
    let out = bed.container().run(["sh", "-c", script])?.ok()?.out();
    check_eq!(out, "0-1\n0\n1\n");
    Ok(())
}

fn network(bed: &Bed) -> Result<()> {
    let out = bed.container().run([
        "sh",
        "-c",
        "ls /sys/class/net; ping -c 1 -W 5 127.0.0.1 | grep -c ' 0% packet loss'",
    ])?;
    let out = out.ok()?.out();
    check_eq!(out, "lo\n1\n");
    Ok(())
}
