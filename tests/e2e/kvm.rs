//! isopod's own monitor, on whatever KVM this machine has, whichever engine the other cases run on. Where
//! that KVM interprets guests' kernels, a boot takes a minute: there is one pod here, and all is asked
//! of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isopod_tests::{Bed, Case, Need, check_contains, check_eq};

/// The cases.
pub const CASES: &[Case] = &[Case::isopod("a_pod_runs_on_the_monitor", smoke)
    .needs(&[Need::Kvm])
    .within(900)
    // An interpreted kernel beside others on the same processors takes minutes.
    .alone()];

const BOOT: Duration = Duration::from_secs(600);

const SCRIPT: &str = "uname -r; grep -c ^processor /proc/cpuinfo; echo told >/file; cat /file; \
    echo complaint >&2; exit 7";

/// Two processors, the container's files, its three streams and its exit code.
fn smoke(bed: &Bed) -> Result<()> {
    bed.settings
        .borrow_mut()
        .set("", "engine", "\"kvm\"")
        .set("vm", "cpus", 2)
        .set("timeouts", "boot", 600)
        .set("timeouts", "request", 300);
    let run = bed
        .container()
        .limit(BOOT)
        .run(["sh", "-c", SCRIPT])
        .context("run a container")?;
    let out = run.out();
    let mut lines = out.lines();
    check_contains!(lines.next().unwrap_or_default(), "isopod");
    check_eq!(lines.next(), Some("2"));
    check_eq!(lines.next(), Some("told"));
    check_contains!(run.err(), "complaint");
    check_eq!(run.code, 7);
    ensure!(run.took < BOOT, "it took {:?}", run.took);
    Ok(())
}
