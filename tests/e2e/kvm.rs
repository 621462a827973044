//! isopod's own monitor, on whatever KVM this machine has, whichever engine the other cases run on. Where
//! that KVM interprets guests' kernels, a boot takes a minute and a new process seconds: there is one pod
//! here, all is asked of it, and what a shell can do by itself starts no program.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use isopod_tests::{Bed, Case, Container, Need, check_contains, check_eq, process};

/// The cases.
pub const CASES: &[Case] = &[Case::isopod("a_pod_runs_on_the_monitor", smoke)
    .needs(&[Need::Kvm])
    .within(2700)
    // An interpreted kernel beside others on the same processors takes minutes.
    .alone()];

/// Two minutes of two processors that do nothing else; a busy machine has given a guest a quarter of one.
const BOOT: Duration = Duration::from_secs(1500);
/// One more process, or an answer of one.
const STEP: Duration = Duration::from_secs(300);

/// Says where it is, what it read and what it was told; ends when it is signalled. `sleep` and the shell
/// itself are all the processes that it takes.
const SCRIPT: &str = r#"
read -r line </proc/sys/kernel/osrelease; echo "kernel $line"
count=0; while read -r key rest; do [ "$key" = processor ] && count=$((count + 1)); done </proc/cpuinfo
echo "processors $count"
echo told >/file; read -r line </file; echo "file $line"
read -r line </volume/from-host; echo "volume $line"; echo guest >/volume/from-guest
echo complaint >&2
read -r line; echo "input $line"
trap 'echo signalled; exit 7' USR1
sleep 1000 & echo ready; wait
"#;

/// Two processors, the container's files and a volume of the host's, its three streams, more processes in
/// it, signals, and exit codes of every kind.
fn smoke(bed: &Bed) -> Result<()> {
    bed.settings
        .borrow_mut()
        .set("", "engine", "\"kvm\"")
        .set("vm", "cpus", 2)
        .set("timeouts", "boot", BOOT.as_secs())
        .set("timeouts", "request", 300);
    let volume = bed.volume()?;
    fs::write(volume.join("from-host"), "host\n")?;
    let container = bed
        .container()
        .named("monitored")
        .bind(&volume, "/volume", "rw");
    let mut init = container.background(["sh", "-c", SCRIPT])?;
    let kernel = init.line(BOOT, |line| line.starts_with("kernel "))?;
    check_contains!(kernel, "isopod");
    for told in ["processors 2", "file told", "volume host", "complaint"] {
        init.line(STEP, |line| line == told).context(told)?;
    }
    init.write(b"something\n")?;
    init.line(STEP, |line| line == "input something")?;
    init.line(STEP, |line| line == "ready")?;
    check_eq!(fs::read_to_string(volume.join("from-guest"))?, "guest\n");

    let container = Container::existing(bed, "monitored");
    let script = "read -r line; echo \"exec $line\"; echo wrong >&2; exit 3";
    let mut exec = container.exec_command(&[], ["sh", "-c", script]);
    let exec = process::run(&mut exec, Some(b"input\n".to_vec()), STEP)?;
    check_eq!(exec.code, 3);
    check_eq!(exec.out(), "exec input\n");
    check_contains!(exec.err(), "wrong");

    // Ended by a signal, not by itself.
    let mut killed = container.exec_command(&[], ["sh", "-c", "kill -9 $$"]);
    check_eq!(process::run(&mut killed, None, STEP)?.code, 137);

    container.kill("USR1")?;
    init.line(STEP, |line| line == "signalled")?;
    check_eq!(init.finish(STEP)?, 7);
    Ok(())
}
