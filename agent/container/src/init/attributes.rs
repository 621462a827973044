//! What a process is to the scheduler and to old programs: policy, I/O priority, execution domain.

use nix::sys::personality;
use oci_spec::runtime::{
    IOPriorityClass, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Process, Scheduler,
};

use super::{InitError, act};
use crate::sys::schedule::{Schedule, set_io_priority, set_schedule};

/// Sets the scheduling policy and the I/O priority; with the rights of the guest's root.
pub(super) fn set_priorities(process: &Process) -> Result<(), InitError> {
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        // Checked to be 0 to 7.
        let number = u16::try_from(priority.priority()).unwrap_or(0);
        set_io_priority(class, number)
            .map_err(|e| act(e, || "process.ioPriority: set".to_owned()))?;
    }
    match process.scheduler() {
        Some(scheduler) if is_inherited(scheduler) => set_scheduler(0, scheduler),
        _ => Ok(()),
    }
}

/// Sets the policy of the process that was just made, if making it has lost it.
pub(super) fn set_lost_policy(process: &Process, child: i32) -> Result<(), InitError> {
    match process.scheduler() {
        Some(scheduler) if !is_inherited(scheduler) => set_scheduler(child, scheduler),
        _ => Ok(()),
    }
}

/// sched(7), "Reset-on-fork" and "SCHED_DEADLINE".
fn is_inherited(scheduler: &Scheduler) -> bool {
    let reset = LinuxSchedulerFlag::SchedResetOnFork;
    let mut flags = scheduler.flags().iter().flatten();
    *scheduler.policy() != LinuxSchedulerPolicy::SchedDeadline && !flags.any(|flag| *flag == reset)
}

fn set_scheduler(process: i32, scheduler: &Scheduler) -> Result<(), InitError> {
    set_schedule(process, schedule(scheduler)).map_err(|e| {
        act(e, || {
            format!("process.scheduler: set {}", scheduler.policy())
        })
    })
}

/// SCHED_* and SCHED_FLAG_* of linux/sched.h.
fn schedule(scheduler: &Scheduler) -> Schedule {
    let flags = scheduler.flags().iter().flatten();
    Schedule {
        size: 0,
        policy: match scheduler.policy() {
            LinuxSchedulerPolicy::SchedOther => 0,
            LinuxSchedulerPolicy::SchedFifo => 1,
            LinuxSchedulerPolicy::SchedRr => 2,
            LinuxSchedulerPolicy::SchedBatch => 3,
            LinuxSchedulerPolicy::SchedIso => 4,
            LinuxSchedulerPolicy::SchedIdle => 5,
            LinuxSchedulerPolicy::SchedDeadline => 6,
        },
        flags: flags
            .map(|flag| match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            })
            .fold(0, |all, flag| all | flag),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).cast_unsigned(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

/// Sets the execution domain: what `uname` says of the machine. Without one, what an engine's or agent's
/// own domain would be is not inherited either.
pub(super) fn set_personality(wanted: Option<&LinuxPersonality>) -> Result<(), InitError> {
    /// PER_LINUX32, linux/personality.h.
    const LINUX32: libc::c_int = 8;
    let Some(wanted) = wanted else { return Ok(()) };
    let domain = match wanted.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => LINUX32,
    };
    personality::set(personality::Persona::from_bits_retain(domain))
        .map(drop)
        .map_err(|e| act(e, || format!("linux.personality: set {}", wanted.domain())))
}
