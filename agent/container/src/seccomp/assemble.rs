//! BPF for a system call filter.
//!
//! ```text
//!  load arch ; known? else KILL_PROCESS
//!  per machine:  load nr ; x32? -> ENOSYS
//!    per call:   nr? else next call
//!      per rule: conditions? else next rule ; return result
//!                return default
//!    return default
//! ```

use std::collections::BTreeMap;

use crate::sys::seccomp::Instruction;

// linux/bpf_common.h: class | size or operation | mode or source.
const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;

// Offsets in struct seccomp_data, linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// BPF_MAXINSNS.
const LONGEST: usize = 4096;
/// x32 calls have this bit in their number.
const X32: u32 = 0x4000_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ENOSYS: u32 = 0x0005_0000 | 38;

/// One comparison of a 64-bit argument, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// Mask, value.
    MaskedEqual(u64, u64),
}

/// A comparison and the argument that it looks at, 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub argument: u8,
    pub operator: Operator,
}

/// If all conditions hold, `result`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub conditions: Vec<Condition>,
    pub result: u32,
}

/// The rules of one architecture.
#[derive(Debug)]
pub(super) struct Machine {
    /// AUDIT_ARCH_*.
    pub audit: u32,
    pub calls: BTreeMap<u32, Vec<Rule>>,
}

/// Where a comparison goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// The condition holds.
    Pass,
    /// It does not: to the end of the rule.
    Fail,
}

/// One instruction of a condition, its jumps still open.
type Step = (u16, u32, To, To);

fn steps(condition: Condition) -> Vec<Step> {
    use To::{Fail, Next, Pass};
    let low = ARGUMENTS + u32::from(condition.argument) * 8;
    let high = low + 4;
    let split = |value: u64| ((value >> 32) as u32, value as u32);
    let load = |offset| (LOAD, offset, Next, Next);
    // Greater than in the high half decides; equal leaves it to the low half.
    let ordered = |value: u64, code: u16, greater: To, less: To| {
        let (value_high, value_low) = split(value);
        vec![
            load(high),
            (JUMP_GREATER, value_high, greater, Next),
            (JUMP_EQUAL, value_high, Next, less),
            load(low),
            (code, value_low, greater, less),
        ]
    };
    match condition.operator {
        Operator::Equal(value) => {
            let (value_high, value_low) = split(value);
            vec![
                load(high),
                (JUMP_EQUAL, value_high, Next, Fail),
                load(low),
                (JUMP_EQUAL, value_low, Pass, Fail),
            ]
        }
        Operator::NotEqual(value) => {
            let (value_high, value_low) = split(value);
            vec![
                load(high),
                (JUMP_EQUAL, value_high, Next, Pass),
                load(low),
                (JUMP_EQUAL, value_low, Fail, Pass),
            ]
        }
        Operator::Greater(value) => ordered(value, JUMP_GREATER, Pass, Fail),
        Operator::GreaterOrEqual(value) => ordered(value, JUMP_GREATER_OR_EQUAL, Pass, Fail),
        Operator::Less(value) => ordered(value, JUMP_GREATER_OR_EQUAL, Fail, Pass),
        Operator::LessOrEqual(value) => ordered(value, JUMP_GREATER, Fail, Pass),
        Operator::MaskedEqual(mask, value) => {
            let (mask_high, mask_low) = split(mask);
            let (value_high, value_low) = split(value);
            vec![
                load(high),
                (AND, mask_high, Next, Next),
                (JUMP_EQUAL, value_high, Next, Fail),
                load(low),
                (AND, mask_low, Next, Next),
                (JUMP_EQUAL, value_low, Pass, Fail),
            ]
        }
    }
}

fn instruction(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Six conditions of six steps are the most that a rule has, so that every jump fits eight bits.
fn rule(rule: &Rule) -> Option<Vec<Instruction>> {
    let conditions: Vec<Vec<Step>> = rule.conditions.iter().copied().map(steps).collect();
    let total: usize = conditions.iter().map(Vec::len).sum();
    let mut out = Vec::new();
    let mut begin = 0;
    for steps in &conditions {
        let end = begin + steps.len();
        for (code, k, yes, no) in steps {
            let here = out.len() + 1;
            let offset = |to: To| {
                let target = match to {
                    To::Next => here,
                    To::Pass => end,
                    // Past the return.
                    To::Fail => total + 1,
                };
                u8::try_from(target.checked_sub(here)?).ok()
            };
            out.push(Instruction {
                code: *code,
                jt: offset(*yes)?,
                jf: offset(*no)?,
                k: *k,
            });
        }
        begin = end;
    }
    out.push(instruction(RETURN, rule.result));
    Some(out)
}

fn machine(machine: &Machine, default: u32) -> Option<Vec<Instruction>> {
    let mut out = vec![instruction(LOAD, NUMBER)];
    if machine.audit == super::X86_64 {
        out.push(Instruction {
            code: JUMP_GREATER_OR_EQUAL,
            jt: 0,
            jf: 1,
            k: X32,
        });
        out.push(instruction(RETURN, ENOSYS));
    }
    for (number, rules) in &machine.calls {
        let mut body = Vec::new();
        let mut decided = false;
        for each in rules {
            body.extend(rule(each)?);
            if each.conditions.is_empty() {
                // What follows cannot be reached.
                decided = true;
                break;
            }
        }
        if !decided {
            body.push(instruction(RETURN, default));
        }
        match u8::try_from(body.len()) {
            Ok(length) => out.push(Instruction {
                code: JUMP_EQUAL,
                jt: 0,
                jf: length,
                k: *number,
            }),
            Err(_) => {
                out.push(Instruction {
                    code: JUMP_EQUAL,
                    jt: 1,
                    jf: 0,
                    k: *number,
                });
                out.push(instruction(JUMP, u32::try_from(body.len()).ok()?));
            }
        }
        out.extend(body);
    }
    out.push(instruction(RETURN, default));
    Some(out)
}

/// The whole program; `None` when it is longer than the kernel takes.
pub(super) fn program(machines: &[Machine], default: u32) -> Option<Vec<Instruction>> {
    let mut out = vec![instruction(LOAD, ARCH)];
    for each in machines {
        let body = machine(each, default)?;
        out.push(Instruction {
            code: JUMP_EQUAL,
            jt: 1,
            jf: 0,
            k: each.audit,
        });
        out.push(instruction(JUMP, u32::try_from(body.len()).ok()?));
        out.extend(body);
    }
    out.push(instruction(RETURN, KILL_PROCESS));
    (out.len() <= LONGEST).then_some(out)
}
