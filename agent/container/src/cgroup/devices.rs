//! `linux.resources.devices` -> the eBPF program that cgroup v2 has in place of a device controller.
//!
//! ```text
//! r3 = what is asked for: mknod, read, write
//! for each rule, the last first:
//!   another type or number?  next rule
//!   deny:   is any of r3 meant?   return 0
//!   allow:  r3 -= what is meant;  nothing left? return 1
//! return 0
//! ```
//! So each access is decided by the last rule that means it, and what none means is denied. Behind the
//! specification's rules stand those that runc adds: a container may always make nodes, and use the
//! default devices and its terminals.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::{
    cgroup::CgroupError,
    spec::{SpecError, invalid},
    sys::bpf::{self, Instruction},
};

const FIELD: &str = "linux.resources.devices";
/// More than any machine has use for; a program of so many rules is far below the kernel's limit.
const MOST_RULES: usize = 4096;

// BPF_DEVCG_DEV_* and BPF_DEVCG_ACC_*, linux/bpf.h.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// One rule. `None` means every one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<u32>,
    minor: Option<u32>,
    /// Bits of MKNOD, READ, WRITE.
    access: i32,
}

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule {
        allow: true,
        kind: Some(CHARACTER),
        major: Some(major),
        minor,
        access: MKNOD | READ | WRITE,
    }
}

/// What runc adds behind the specification's rules.
const ALWAYS: &[Rule] = &[
    Rule {
        allow: true,
        kind: None,
        major: None,
        minor: None,
        access: MKNOD,
    },
    // null, zero, full, random, urandom, tty, ptmx; then the terminals.
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(2)),
    character(136, None),
];

/// A program to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

/// Compiles a specification's rules, and the default ones.
pub fn compile(rules: &[LinuxDeviceCgroup]) -> Result<Program, SpecError> {
    if rules.len() > MOST_RULES {
        return Err(invalid(
            FIELD,
            format!("{} rules are more than {MOST_RULES}", rules.len()),
        ));
    }
    let mut all = rules
        .iter()
        .enumerate()
        .map(|(index, rule)| read(index, rule))
        .collect::<Result<Vec<_>, _>>()?;
    all.extend(ALWAYS);
    Ok(Program(assemble(&all)))
}

fn read(index: usize, rule: &LinuxDeviceCgroup) -> Result<Rule, SpecError> {
    let field = |name: &str| format!("{FIELD}[{index}].{name}");
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::P) => {
            return Err(invalid(field("type"), "a rule is about a, b or c"));
        }
    };
    let number = |value: Option<i64>, name: &str| match value {
        // containerd and Docker write -1 for every number.
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid(field(name), format!("{value} is not a device number"))),
    };
    let text = rule.access().as_deref().unwrap_or_default();
    let access = text.chars().try_fold(0, |bits, letter| {
        Ok(bits
            | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => {
                    return Err(invalid(
                        field("access"),
                        format!("{text:?} has other letters than r, w and m"),
                    ));
                }
            })
    })?;
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number(rule.major(), "major")?,
        minor: number(rule.minor(), "minor")?,
        // Without letters the whole device is meant, as with runc.
        access: if access == 0 {
            MKNOD | READ | WRITE
        } else {
            access
        },
    })
}

// linux/bpf_common.h and linux/bpf.h: class | operation | source.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_EQUAL: u8 = 0x16;
const JUMP_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

// Registers: 0 is the answer, 1 the context.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ASKED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: source << 4 | target,
        offset,
        immediate,
    }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(MOVE, ANSWER, 0, 0, i32::from(allow)),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor.
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ASKED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ASKED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let decision = if rule.allow {
            vec![
                instruction(AND, ASKED, 0, 0, !rule.access),
                // Past the answer.
                instruction(JUMP_NOT_EQUAL, ASKED, 0, 2, 0),
            ]
        } else {
            vec![
                instruction(MOVE_REGISTER, ANSWER, ASKED, 0, 0),
                instruction(AND, ANSWER, 0, 0, rule.access),
                instruction(JUMP_EQUAL, ANSWER, 0, 2, 0),
            ]
        };
        let tests: Vec<_> = [
            (KIND, rule.kind),
            (MAJOR, rule.major.map(u32::cast_signed)),
            (MINOR, rule.minor.map(u32::cast_signed)),
        ]
        .into_iter()
        .filter_map(|(register, wanted)| Some((register, wanted?)))
        .collect();
        let mut left = tests.len() + decision.len() + 2;
        for (register, wanted) in tests {
            left -= 1;
            // At most eight.
            let past = i16::try_from(left).unwrap_or(i16::MAX);
            program.push(instruction(JUMP_NOT_EQUAL, register, 0, past, wanted));
        }
        program.extend(decision);
        program.extend(answer(rule.allow));
    }
    program.extend(answer(false));
    program
}

/// The program of a container. Attached as long as its cgroup is; held for an update to replace it.
#[derive(Debug)]
pub struct Attached(OwnedFd);

/// Enforces a program on an open cgroup directory, in place of the one before it if given.
pub fn attach(
    cgroup: BorrowedFd<'_>,
    program: &Program,
    replaced: Option<&Attached>,
) -> Result<Attached, CgroupError> {
    let failed = |act| move |source| CgroupError::Devices { act, source };
    let loaded = bpf::load_device_program(&program.0).map_err(failed("load the rules' program"))?;
    bpf::attach_device_program(cgroup, loaded.as_fd(), replaced.map(|old| old.0.as_fd()))
        .map_err(failed("attach the rules' program"))?;
    Ok(Attached(loaded))
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
