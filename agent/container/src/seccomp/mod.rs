//! `linux.seccomp` -> one BPF program.
//!
//! ```text
//! profile --plan--> per architecture: number -> rules --assemble--> BPF --install--> the process
//! ```
//! As libseccomp and runc do it: names that an architecture does not know are skipped; several conditions
//! of one rule must all hold, unless two look at the same argument, then one suffices; rules with
//! conditions come before those without.

mod assemble;

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use self::assemble::{Condition, Machine, Operator, Rule};
use crate::{
    spec::{SpecError, invalid, unsupported},
    sys::seccomp::{Instruction, LOG, SPEC_ALLOW, TSYNC},
};

/// AUDIT_ARCH_* of linux/audit.h.
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

/// A compiled profile.
#[derive(Debug)]
pub(crate) struct Filter {
    pub program: Vec<Instruction>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u64,
}

/// Refuses what cannot be expressed.
pub(crate) fn check(profile: &LinuxSeccomp) -> Result<(), SpecError> {
    compile(profile).map(drop)
}

/// Compiles a profile.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter, SpecError> {
    if profile
        .listener_path()
        .as_ref()
        .is_some_and(|path| !path.as_os_str().is_empty())
    {
        return Err(unsupported(
            "linux.seccomp.listenerPath",
            "notifying another process",
        ));
    }
    let default = action(
        profile.default_action(),
        profile.default_errno_ret(),
        "linux.seccomp.defaultAction",
    )?;
    let mut machines = vec![machine::<syscalls::x86_64::Sysno>(
        X86_64, profile, default,
    )?];
    let mut wants_i386 = false;
    for (index, arch) in profile.architectures().iter().flatten().enumerate() {
        match arch {
            Arch::ScmpArchX86 => wants_i386 = true,
            // libseccomp mixes no byte orders in one filter.
            Arch::ScmpArchMips
            | Arch::ScmpArchMips64
            | Arch::ScmpArchMips64n32
            | Arch::ScmpArchPpc
            | Arch::ScmpArchPpc64
            | Arch::ScmpArchS390
            | Arch::ScmpArchS390x
            | Arch::ScmpArchParisc
            | Arch::ScmpArchParisc64 => {
                return Err(unsupported(
                    format!("linux.seccomp.architectures[{index}]"),
                    format!("{arch}, whose byte order is another,"),
                ));
            }
            // The guest's own is there; x32 is an ABI that its kernel has not: its numbers answer ENOSYS.
            // Profiles for several kinds of machines list them all: the others make no calls here.
            _ => {}
        }
    }
    if wants_i386 {
        machines.push(machine::<syscalls::x86::Sysno>(I386, profile, default)?);
    }
    let program = assemble::program(&machines, default).ok_or_else(|| {
        invalid(
            "linux.seccomp.syscalls",
            "the profile is longer than the kernel takes",
        )
    })?;
    Ok(Filter {
        program,
        flags: flags(profile),
    })
}

fn flags(profile: &LinuxSeccomp) -> u64 {
    profile
        .flags()
        .iter()
        .flatten()
        .map(|flag| match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
            // It says how to wait for a listener, and there is none.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        })
        .fold(0, |all, flag| all | flag)
}

/// SECCOMP_RET_* with its data.
fn action(action: LinuxSeccompAction, errno: Option<u32>, field: &str) -> Result<u32, SpecError> {
    if action == LinuxSeccompAction::ScmpActNotify {
        return Err(unsupported(field, "SCMP_ACT_NOTIFY"));
    }
    if errno.is_some_and(|errno| errno > 0xffff) {
        return Err(invalid(field, "its errno has more than 16 bits"));
    }
    Ok(action.as_u32(errno))
}

fn machine<S: std::str::FromStr + Into<Number>>(
    audit: u32,
    profile: &LinuxSeccomp,
    default: u32,
) -> Result<Machine, SpecError> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for (index, group) in profile.syscalls().iter().flatten().enumerate() {
        let field = format!("linux.seccomp.syscalls[{index}]");
        let result = action(
            group.action(),
            group.errno_ret(),
            &format!("{field}.action"),
        )?;
        let rules = rules(group, result, &field)?;
        // libseccomp refuses such a rule, and runc skips it.
        if result == default {
            continue;
        }
        for name in group.names() {
            if let Ok(call) = S::from_str(name) {
                let number: Number = call.into();
                calls.entry(number.0).or_default().extend(rules.clone());
            }
        }
    }
    for rules in calls.values_mut() {
        // Stable: among equals, the profile's order.
        rules.sort_by_key(|rule| rule.conditions.is_empty());
    }
    Ok(Machine { audit, calls })
}

/// A system call's number, whatever the table that names it.
struct Number(u32);

impl From<syscalls::x86_64::Sysno> for Number {
    fn from(call: syscalls::x86_64::Sysno) -> Self {
        Self(call.id() as u32)
    }
}

impl From<syscalls::x86::Sysno> for Number {
    fn from(call: syscalls::x86::Sysno) -> Self {
        Self(call.id() as u32)
    }
}

fn rules(group: &LinuxSyscall, result: u32, field: &str) -> Result<Vec<Rule>, SpecError> {
    let args = group.args().as_deref().unwrap_or_default();
    let conditions: Vec<Condition> = args
        .iter()
        .enumerate()
        .map(|(index, arg)| condition(arg, &format!("{field}.args[{index}]")))
        .collect::<Result<_, _>>()?;
    let twice = conditions.iter().enumerate().any(|(index, condition)| {
        conditions
            .iter()
            .take(index)
            .any(|earlier| earlier.argument == condition.argument)
    });
    if twice {
        return Ok(conditions
            .into_iter()
            .map(|condition| Rule {
                conditions: vec![condition],
                result,
            })
            .collect());
    }
    Ok(vec![Rule { conditions, result }])
}

fn condition(arg: &LinuxSeccompArg, field: &str) -> Result<Condition, SpecError> {
    let argument = u8::try_from(arg.index())
        .ok()
        .filter(|index| *index < 6)
        .ok_or_else(|| invalid(format!("{field}.index"), "a system call has six arguments"))?;
    let value = arg.value();
    Ok(Condition {
        argument,
        operator: match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => Operator::NotEqual(value),
            LinuxSeccompOperator::ScmpCmpLt => Operator::Less(value),
            LinuxSeccompOperator::ScmpCmpLe => Operator::LessOrEqual(value),
            LinuxSeccompOperator::ScmpCmpEq => Operator::Equal(value),
            LinuxSeccompOperator::ScmpCmpGe => Operator::GreaterOrEqual(value),
            LinuxSeccompOperator::ScmpCmpGt => Operator::Greater(value),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                Operator::MaskedEqual(value, arg.value_two().unwrap_or(0))
            }
        },
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
