//! Containers that do their worst: the others of the pod do not notice, and nothing is left.

use std::time::Duration;

use anyhow::{Result, ensure};
use isopod_tests::{
    Background, Bed, Case, Container, Runtime, check_eq,
    spec::{privilege, spec},
};
use serde_json::{Value, json};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("a_fork_bomb_within_its_limit", fork_bomb).within(180),
    Case::both("the_runtimes_binary_cannot_be_overwritten", overwrite).within(180),
    Case::both("thirty_containers_one_after_the_other", short_lives).within(240),
];

/// The pod, and its first container.
pub const POD: &str = "pod";

/// What makes a container one of the pod.
pub fn annotations(kind: &str) -> Value {
    json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": POD,
    })
}

/// A container of the pod with this script; `change` makes it worse.
pub fn member<'b>(
    bed: &'b Bed,
    id: &str,
    script: &str,
    change: impl FnOnce(&mut Value),
) -> Result<Container<'b>> {
    let cgroup = format!("/{}/{id}", bed.namespace);
    let mut spec = spec(&bed.rootfs()?, &cgroup, &["sh", "-c", script]);
    let kind = if id == POD { "sandbox" } else { "container" };
    spec["annotations"] = annotations(kind);
    change(&mut spec);
    bed.container().named(id).spec(&spec)?.start([])
}

/// The command of one that does nothing.
pub const SLEEP: &str = "exec sleep 100000";

/// Counts processes; the shell expands the pattern while it is alone.
const COUNT: [&str; 3] = ["sh", "-c", "set -- /proc/[0-9]*; echo $#"];

/// All that a guest has; of the host's, what this process may give away.
pub fn all_capabilities(bed: &Bed) -> Result<u64> {
    if bed.runtime == Runtime::Isopod {
        return Ok((1 << 41) - 1);
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    Ok(u64::from_str_radix(line.unwrap_or("0").trim(), 16)?)
}

/// The pod's quiet container still does what it is told, in time.
pub fn is_well(quiet: &Container<'_>) -> Result<()> {
    check_eq!(quiet.output(["echo", "well"])?, "well");
    Ok(())
}

fn fork_bomb(bed: &Bed) -> Result<()> {
    let quiet = member(bed, POD, SLEEP, |_| {})?;
    let script = "bomb() { bomb | bomb & }; bomb 2> /dev/null; exec sleep 100000";
    let bomb = member(bed, "bomb", script, |spec| {
        spec["linux"]["resources"]["pids"] = json!({ "limit": 64 });
        spec["linux"]["resources"]["cpu"] = json!({ "quota": 20000, "period": 100000 });
    })?;
    std::thread::sleep(Duration::from_secs(2));
    is_well(&quiet)?;
    bomb.end()?;
    is_well(&quiet)?;
    quiet.end()
}

/// CVE-2019-5736: a container's root writes to the runtime's binary through /proc/PID/exe of a process
/// that the runtime has just put into the container.
fn overwrite(bed: &Bed) -> Result<()> {
    let script = "echo ready; while :; do for p in /proc/[0-9]*; do \
          case $(readlink $p/exe) in *busybox|'') ;; *) \
            (: >> $p/exe) 2> /dev/null && echo WROTE $(readlink $p/exe);; esac; done; done";
    let cgroup = format!("/{}/thief", bed.namespace);
    let rootfs = bed.rootfs()?;
    std::fs::write(rootfs.join("bin/lure"), "#!/proc/self/exe\n")?;
    std::fs::set_permissions(
        rootfs.join("bin/lure"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let mut spec = spec(&rootfs, &cgroup, &["sh", "-c", script]);
    privilege(&mut spec, all_capabilities(bed)?);
    spec["process"]["noNewPrivileges"] = json!(false);
    let run = bed.container().named("thief").spec(&spec)?;
    let mut thief: Background = run.background([])?;
    thief.line(Duration::from_secs(60), |line| line == "ready")?;
    let container = Container::existing(bed, "thief");
    for command in ["true", "lure", "/proc/self/exe", "nosuch"] {
        for _ in 0..4 {
            // Whether it can be executed does not matter.
            let _ = container.exec([command])?;
        }
    }
    let wrote = thief.lines().iter().any(|line| line.contains("WROTE"));
    ensure!(!wrote, "{:?}", thief.lines());
    container.kill("KILL")?;
    thief.finish(Duration::from_secs(60))?;
    Ok(())
}

fn short_lives(bed: &Bed) -> Result<()> {
    let quiet = member(bed, POD, SLEEP, |_| {})?;
    let before = quiet.output(COUNT)?;
    for round in 0..30 {
        let id = format!("short{round}");
        let short = member(bed, &id, "exit 7", |_| {})?;
        short.becomes("STOPPED")?;
        check_eq!(short.delete_task()?, 7, "round {round}");
        short.remove()?;
    }
    is_well(&quiet)?;
    check_eq!(quiet.output(COUNT)?, before);
    quiet.end()
}
