//! `process`: of a container, and of an exec.

use oci_spec::runtime::{LinuxSchedulerPolicy, Process, Scheduler};

use super::{SpecError, invalid, no_nul, some, text, unsupported};

/// Checks a process, of a container or of an exec.
pub fn check(process: &Process) -> Result<(), SpecError> {
    let args = some(process.args());
    if args.is_empty() {
        return Err(invalid("process.args", "there is no command"));
    }
    for (index, arg) in args.iter().enumerate() {
        no_nul(&format!("process.args[{index}]"), arg)?;
    }
    for (index, variable) in some(process.env()).iter().enumerate() {
        no_nul(&format!("process.env[{index}]"), variable)?;
    }
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", "it is not an absolute path"));
    }
    if process.command_line().is_some() {
        return Err(unsupported("process.commandLine", "a Windows command line"));
    }
    if !text(process.user().username()).is_empty() {
        return Err(unsupported("process.user.username", "a user by name"));
    }
    if process.user().umask().is_some_and(|mask| mask > 0o777) {
        return Err(invalid("process.user.umask", "it is above 0777"));
    }
    let profile = text(process.apparmor_profile());
    if !profile.is_empty() && profile != "unconfined" {
        return Err(unsupported(
            "process.apparmorProfile",
            format!("profile {profile:?}: the guest kernel has no AppArmor, which"),
        ));
    }
    if !text(process.selinux_label()).is_empty() {
        return Err(unsupported(
            "process.selinuxLabel",
            "a label: the guest kernel has no SELinux, which",
        ));
    }
    if process.exec_cpu_affinity().is_some() {
        return Err(unsupported(
            "process.execCPUAffinity",
            "an affinity to CPUs, which it numbers as the host's,",
        ));
    }
    if let Some(priority) = process.io_priority()
        && !(0..=7).contains(&priority.priority())
    {
        return Err(invalid(
            "process.ioPriority.priority",
            format!("{} is outside 0 to 7", priority.priority()),
        ));
    }
    if let Some(scheduler) = process.scheduler() {
        check_scheduler(scheduler)?;
    }
    for (index, limit) in some(process.rlimits()).iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if limit.soft() > limit.hard() {
            return Err(invalid(field, "the soft limit is above the hard limit"));
        }
        let again = some(process.rlimits())
            .iter()
            .take(index)
            .any(|earlier| earlier.typ() == limit.typ());
        if again {
            return Err(invalid(field, format!("{} comes twice", limit.typ())));
        }
    }
    if process
        .oom_score_adj()
        .is_some_and(|adj| !(-1000..=1000).contains(&adj))
    {
        return Err(invalid(
            "process.oomScoreAdj",
            "it is outside -1000 to 1000",
        ));
    }
    Ok(())
}

/// sched(7): which numbers a policy takes.
fn check_scheduler(scheduler: &Scheduler) -> Result<(), SpecError> {
    use LinuxSchedulerPolicy as Policy;
    let field = |name: &str| format!("process.scheduler.{name}");
    let policy = *scheduler.policy();
    if policy == Policy::SchedIso {
        return Err(unsupported(
            field("policy"),
            "SCHED_ISO, which Linux has not,",
        ));
    }
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(invalid(
            field("nice"),
            format!("{nice} is outside -20 to 19"),
        ));
    }
    let priority = scheduler.priority().unwrap_or(0);
    let real_time = matches!(policy, Policy::SchedFifo | Policy::SchedRr);
    if real_time && !(1..=99).contains(&priority) {
        return Err(invalid(
            field("priority"),
            format!("{priority} is outside 1 to 99"),
        ));
    }
    if !real_time && priority != 0 {
        return Err(invalid(field("priority"), format!("{policy} has none")));
    }
    let times = [
        (scheduler.runtime(), "runtime"),
        (scheduler.deadline(), "deadline"),
        (scheduler.period(), "period"),
    ];
    for (time, name) in times {
        if policy != Policy::SchedDeadline && time.is_some_and(|time| time != 0) {
            return Err(invalid(field(name), format!("{policy} has none")));
        }
    }
    Ok(())
}
