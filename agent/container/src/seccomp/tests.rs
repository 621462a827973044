use super::*;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};
use std::str::FromStr as _;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;

fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).expect("a profile")
}

/// The kernel's interpreter, as far as a filter uses it.
fn interpret(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        0 => number,
        4 => arch,
        offset => {
            let arg = args[(offset as usize - 16) / 8];
            if offset % 8 == 0 {
                arg as u32
            } else {
                (arg >> 32) as u32
            }
        }
    };
    let (mut at, mut a) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        match code {
            0x20 => a = word(k),
            0x54 => a &= k,
            0x06 => return k,
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn run(filter: &Filter, name: &str, args: [u64; 6]) -> u32 {
    let number: Number = syscalls::x86_64::Sysno::from_str(name)
        .expect("a call")
        .into();
    interpret(&filter.program, X86_64, number.0, args)
}

/// The shape of the profile that containerd gives a pod.
fn typical() -> LinuxSeccomp {
    profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "write", "_llseek", "arm_fadvise64_64"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0xffff_ffff_u32, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
        ]
    }))
}

#[rstest]
#[case("read", [9, 9, 9, 9, 9, 9], ALLOW)]
#[case("mount", [0; 6], EPERM)]
#[case("personality", [8, 0, 0, 0, 0, 0], ALLOW)]
#[case("personality", [0xffff_ffff, 0, 0, 0, 0, 0], ALLOW)]
#[case("personality", [0x8_0000_0008, 0, 0, 0, 0, 0], EPERM)]
#[case("socket", [40, 0, 0, 0, 0, 0], EPERM)]
#[case("socket", [2, 0, 0, 0, 0, 0], ALLOW)]
#[case("clone", [0x11, 0, 0, 0, 0, 0], ALLOW)]
#[case("clone", [0x1000_0011, 0, 0, 0, 0, 0], EPERM)]
#[case("clone3", [0; 6], 0x0005_0000 | 38)]
fn a_typical_profile(#[case] name: &str, #[case] args: [u64; 6], #[case] result: u32) {
    let filter = compile(&typical()).expect("compiles");
    assert_eq!(run(&filter, name, args), result);
}

#[test]
fn other_architectures_have_their_own_numbers() {
    let filter = compile(&typical()).expect("compiles");
    // i386: read is 3, _llseek 140, mount 21; x86_64's read is 0.
    assert_eq!(interpret(&filter.program, I386, 3, [0; 6]), ALLOW);
    assert_eq!(interpret(&filter.program, I386, 140, [0; 6]), ALLOW);
    assert_eq!(interpret(&filter.program, I386, 21, [0; 6]), EPERM);
    assert_eq!(interpret(&filter.program, I386, 0, [0; 6]), EPERM);
    // x32, and an architecture that is not listed.
    assert_eq!(
        interpret(&filter.program, X86_64, 0x4000_0000, [0; 6]),
        0x0005_0000 | 38
    );
    assert_eq!(
        interpret(&filter.program, 0xc000_00b7, 0, [0; 6]),
        0x8000_0000
    );
    let plain = profile(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    let filter = compile(&plain).expect("compiles");
    assert_eq!(interpret(&filter.program, I386, 3, [0; 6]), 0x8000_0000);
}

#[test]
fn conditions_of_one_argument_are_alternatives() {
    let both = |first: u8, second: u8| {
        profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["dup"], "action": "SCMP_ACT_KILL_PROCESS", "args": [
                {"index": first, "value": 1, "op": "SCMP_CMP_EQ"},
                {"index": second, "value": 2, "op": "SCMP_CMP_EQ"}]}]}))
    };
    let same = compile(&both(0, 0)).expect("compiles");
    assert_eq!(run(&same, "dup", [1, 0, 0, 0, 0, 0]), 0x8000_0000);
    assert_eq!(run(&same, "dup", [2, 0, 0, 0, 0, 0]), 0x8000_0000);
    assert_eq!(run(&same, "dup", [3, 0, 0, 0, 0, 0]), ALLOW);
    let different = compile(&both(0, 1)).expect("compiles");
    assert_eq!(run(&different, "dup", [1, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(&different, "dup", [1, 2, 0, 0, 0, 0]), 0x8000_0000);
}

#[test]
fn architectures_that_make_no_calls_here_change_nothing() {
    let with = |architectures: &[&str]| {
        compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures,
            "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_ALLOW"}],
        })))
        .expect("compiles")
        .program
    };
    let alone = with(&["SCMP_ARCH_X86_64"]);
    let many = [
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_ARM",
        "SCMP_ARCH_RISCV64",
        "SCMP_ARCH_X32",
    ];
    assert_eq!(with(&many), alone);
    assert_ne!(with(&["SCMP_ARCH_X86"]), alone);
}

#[rstest]
#[case(json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction")]
#[case(json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}), "linux.seccomp.listenerPath")]
#[case(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}), "linux.seccomp.architectures[0]")]
#[case(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_NOTIFY"}]}),
    "linux.seccomp.syscalls[0].action")]
#[case(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["dup"], "action": "SCMP_ACT_ERRNO",
    "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}), "linux.seccomp.syscalls[0].args[0].index")]
#[case(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65536}), "linux.seccomp.defaultAction")]
fn what_cannot_be_expressed_is_named(#[case] value: Value, #[case] field: &str) {
    let error = check(&profile(value)).expect_err("refused").to_string();
    assert!(error.starts_with(&format!("{field}: ")), "{error}");
}

fn holds(operator: Operator, value: u64) -> bool {
    match operator {
        Operator::Equal(v) => value == v,
        Operator::NotEqual(v) => value != v,
        Operator::Less(v) => value < v,
        Operator::LessOrEqual(v) => value <= v,
        Operator::Greater(v) => value > v,
        Operator::GreaterOrEqual(v) => value >= v,
        Operator::MaskedEqual(mask, v) => value & mask == v,
    }
}

/// Values that differ in one half only are where 64-bit comparison in halves goes wrong.
fn halves() -> impl Strategy<Value = u64> {
    let half = prop_oneof![Just(0u64), Just(1), Just(2), Just(0xffff_ffff)];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

fn operators() -> impl Strategy<Value = Operator> {
    (0..7, halves(), halves()).prop_map(|(kind, a, b)| match kind {
        0 => Operator::Equal(a),
        1 => Operator::NotEqual(a),
        2 => Operator::Less(a),
        3 => Operator::LessOrEqual(a),
        4 => Operator::Greater(a),
        5 => Operator::GreaterOrEqual(a),
        _ => Operator::MaskedEqual(a, b & a),
    })
}

proptest! {
    #[test]
    fn programs_decide_as_the_rules_say(
        rules in proptest::collection::vec(
            (proptest::collection::vec((0u8..6, operators()), 0..6), 1u32..9), 0..40),
        args in proptest::array::uniform6(halves()),
        number in 0u32..3,
    ) {
        let rules: Vec<Rule> = rules
            .into_iter()
            .map(|(conditions, result)| Rule {
                conditions: conditions
                    .into_iter()
                    .map(|(argument, operator)| Condition { argument, operator })
                    .collect(),
                result,
            })
            .collect();
        let expected = if number == 1 {
            rules.iter().find(|rule| rule.conditions.iter()
                .all(|c| holds(c.operator, args[usize::from(c.argument)])))
                .map_or(ALLOW, |rule| rule.result)
        } else {
            ALLOW
        };
        let machine = Machine { audit: X86_64, calls: BTreeMap::from([(1, rules)]) };
        let program = assemble::program(&[machine], ALLOW).expect("short enough");
        prop_assert_eq!(interpret(&program, X86_64, number, args), expected);
    }
}
