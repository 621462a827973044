//! `isopod debug`: an operator's look into a running pod.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use isopod_tests::{Background, Bed, Case, Finished, Need, check_contains, check_eq, process};

/// The cases.
pub const CASES: &[Case] = &[
    Case::isopod("tells_what_is_in_a_pod", tells)
        .needs(&[Need::Cli])
        .smoke(),
    Case::isopod("is_off_unless_the_settings_allow_it", off).needs(&[Need::Cli]),
];

const LIMIT: Duration = Duration::from_secs(90);

fn isopod(bed: &Bed) -> Command {
    let program: PathBuf = bed.machine.bin_dir.join("isopod");
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

fn ask(bed: &Bed, pod: &str, question: &[&str]) -> Result<Finished> {
    let mut command = isopod(bed);
    command.args(["debug", pod]).args(question);
    process::run(&mut command, None, LIMIT)
}

fn tells(bed: &Bed) -> Result<()> {
    bed.settings.borrow_mut().set("debug", "console", true);
    let container = bed.container().named("looked-at").sleeping()?;
    let pod = bed.pod_of("looked-at");
    let name = format!("{}/{pod}", bed.namespace);

    let containers = ask(bed, &pod, &["containers"])?.ok()?.out();
    let line = containers.lines().find(|line| line.ends_with("looked-at"));
    ensure!(
        line.is_some_and(|line| line.starts_with("running")),
        "{containers}"
    );
    let processes = ask(bed, &name, &["processes"])?.ok()?.out();
    check_contains!(processes, "/sbin/isopod-agent");
    let sleep = processes.lines().find(|line| line.contains(" looked-at "));
    ensure!(
        sleep.is_some_and(|line| line.contains("sleep")),
        "{processes}"
    );
    let mounts = ask(bed, &name, &["mounts"])?.ok()?.out();
    check_contains!(mounts, "virtiofs");
    let cgroup = ask(bed, &name, &["cgroup", "looked-at"])?.ok()?.out();
    check_contains!(cgroup, "memory.current ");
    let kernel = ask(bed, &name, &["kernel", "2000"])?.ok()?.out();
    check_contains!(kernel, "Linux version");
    let cpu = ask(bed, &name, &["read", "/proc/sys/kernel/ostype"])?.ok()?;
    check_contains!(cpu.out(), "Linux");

    // Line by line, as a person or a script types; what is refused says why and is not the end.
    let mut typed = isopod(bed);
    typed.args(["debug", &name]);
    let told = process::run(
        &mut typed,
        Some(b"help\nreboot\n\nmemory\n".to_vec()),
        LIMIT,
    )?;
    let told = told.ok()?.out();
    for word in ["containers", "nothing that can be asked", "MemTotal"] {
        check_contains!(told, word);
    }

    let refused = ask(bed, &name, &["read", "/run/isopod"])?;
    ensure!(refused.code != 0, "{refused:?}");
    check_contains!(refused.err(), "only files of /proc and /sys");
    let nobody = ask(bed, "nobody", &["memory"])?;
    ensure!(nobody.code != 0, "{nobody:?}");
    check_contains!(nobody.err(), "isopod list");
    if let Some(dir) = pod_with_a_port()? {
        by_the_port(bed, &name, &dir).context("by the console's port")?;
    }
    container.end()
}

/// Where pods are.
const STATE: &str = "/run/isopod";

/// The directory of the pod whose machine has a console. (The bed has a /run of its own.)
fn pod_with_a_port() -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(STATE)? {
        let dir = entry?.path();
        if dir.join("monitor.sock").exists() {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// The port serves one, again and again, and does not need the pod's vsock.
fn by_the_port(bed: &Bed, name: &str, dir: &Path) -> Result<()> {
    let (vsock, hidden) = (dir.join("vsock.sock"), dir.join("vsock.hidden"));
    fs::rename(&vsock, &hidden)?;
    let looked = || -> Result<()> {
        let mut command = isopod(bed);
        command.args(["debug", name]);
        let mut first = Background::start(&mut command)?;
        first.write(b"memory\n")?;
        first.line(LIMIT, |line| line.contains("MemTotal"))?;
        let second = ask(bed, name, &["memory"])?;
        ensure!(second.code != 0, "{second:?}");
        check_contains!(second.err(), "somebody else looks into pod");
        first.close_stdin();
        check_eq!(first.finish(LIMIT)?, 0, "the first one's end");
        // Its place is given back when its end is seen.
        process::eventually("the port is free", LIMIT, || {
            let third = ask(bed, name, &["memory"])?;
            Ok((third.code == 0 && third.out().contains("MemTotal")).then_some(()))
        })
    };
    let looked = looked();
    fs::rename(&hidden, &vsock)?;
    looked
}

fn off(bed: &Bed) -> Result<()> {
    let container = bed.container().named("closed").sleeping()?;
    let refused = ask(bed, "closed", &["processes"])?;
    ensure!(refused.code != 0, "{refused:?}");
    check_contains!(refused.err(), "debug.console = true");
    container.end()
}
