use super::*;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

fn compiled(rules: Value) -> Result<Program, SpecError> {
    let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(rules).expect("rules");
    compile(&rules)
}

/// The kernel's part, for the instructions that are used; ends or panics.
fn run(program: &Program, kind: i32, major: u32, minor: u32, access: i32) -> bool {
    let context = [(access << 16 | kind).cast_unsigned(), major, minor];
    let mut registers = [0u32; 11];
    let mut at = 0usize;
    loop {
        let next = program.0[at];
        let (target, source) = (next.registers & 15, next.registers >> 4);
        let (target, source) = (usize::from(target), usize::from(source));
        let value = next.immediate.cast_unsigned();
        at += 1;
        let jump = match next.code {
            LOAD_WORD => {
                registers[target] = context[usize::try_from(next.offset).expect("forward") / 4];
                false
            }
            MOVE => {
                registers[target] = value;
                false
            }
            MOVE_REGISTER => {
                registers[target] = registers[source];
                false
            }
            AND => {
                registers[target] &= value;
                false
            }
            SHIFT_RIGHT => {
                registers[target] >>= value;
                false
            }
            JUMP_EQUAL => registers[target] == value,
            JUMP_NOT_EQUAL => registers[target] != value,
            EXIT => return registers[usize::from(ANSWER)] != 0,
            other => panic!("instruction {other:#x}"),
        };
        if jump {
            at += usize::try_from(next.offset).expect("forward");
        }
    }
}

const ALL: i32 = MKNOD | READ | WRITE;

#[rstest]
// Nothing is said: the default devices, nodes, and nothing else.
#[case(json!([]), CHARACTER, 1, 3, ALL, true)]
#[case(json!([]), CHARACTER, 136, 77, READ | WRITE, true)]
#[case(json!([]), CHARACTER, 1, 11, READ, false)]
#[case(json!([]), BLOCK, 8, 0, MKNOD, true)]
#[case(json!([]), BLOCK, 8, 0, READ, false)]
#[case(json!([]), BLOCK, 8, 0, MKNOD | READ, false)]
// What containerd sends.
#[case(json!([{"allow": false, "access": "rwm"}]), CHARACTER, 1, 5, READ, true)]
#[case(json!([{"allow": false, "access": "rwm"}]), CHARACTER, 1, 1, READ, false)]
// What it sends for a privileged container.
#[case(json!([{"allow": true, "access": "rwm"}]), BLOCK, 8, 0, ALL, true)]
#[case(json!([{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]), CHARACTER, 1, 11, READ, true)]
#[case(json!([{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]), CHARACTER, 1, 11, WRITE, false)]
#[case(json!([{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]), BLOCK, 1, 11, READ, false)]
#[case(json!([{"allow": true, "type": "c", "major": 1, "minor": -1, "access": "rw"}]), CHARACTER, 1, 99, READ | WRITE, true)]
#[case(json!([{"allow": true, "type": "a", "access": "rwm"}, {"allow": false, "type": "b", "major": 8, "access": "w"}]), BLOCK, 8, 3, WRITE, false)]
#[case(json!([{"allow": true, "type": "a", "access": "rwm"}, {"allow": false, "type": "b", "major": 8, "access": "w"}]), BLOCK, 8, 3, READ, true)]
// Two rules together.
#[case(json!([{"allow": true, "type": "c", "major": 9, "access": "r"}, {"allow": true, "type": "c", "major": 9, "access": "w"}]), CHARACTER, 9, 0, READ | WRITE, true)]
// Numbers of more than 31 bits are compared as they are.
#[case(json!([{"allow": true, "type": "c", "major": 4294967295i64, "access": "r"}]), CHARACTER, u32::MAX, 0, READ, true)]
fn rules_decide(
    #[case] rules: Value,
    #[case] kind: i32,
    #[case] major: u32,
    #[case] minor: u32,
    #[case] access: i32,
    #[case] allowed: bool,
) {
    let program = compiled(rules).expect("compiles");
    assert_eq!(run(&program, kind, major, minor, access), allowed);
}

#[rstest]
#[case(json!([{"allow": true, "access": "rx"}]), "[0].access")]
#[case(json!([{"allow": true}, {"allow": true, "type": "p", "access": "r"}]), "[1].type")]
#[case(json!([{"allow": true, "major": -2, "access": "r"}]), "[0].major")]
#[case(json!([{"allow": true, "minor": 4294967296i64, "access": "r"}]), "[0].minor")]
fn bad_rules_are_named(#[case] rules: Value, #[case] field: &str) {
    let error = compiled(rules).expect_err("refused").to_string();
    assert!(error.starts_with(&format!("{FIELD}{field}: ")), "{error}");
}

#[test]
fn too_many_rules_are_refused() {
    let rules = vec![json!({"allow": true, "access": "r"}); MOST_RULES + 1];
    assert!(compiled(Value::Array(rules)).is_err());
}

fn rule() -> impl Strategy<Value = Rule> {
    let few = || proptest::option::of(0u32..3);
    (
        any::<bool>(),
        proptest::option::of(1i32..3),
        few(),
        few(),
        1i32..8,
    )
        .prop_map(|(allow, kind, major, minor, access)| Rule {
            allow,
            kind,
            major,
            minor,
            access,
        })
}

/// The specification's words: for each access, the last rule that means it.
fn reference(rules: &[Rule], kind: i32, major: u32, minor: u32, access: i32) -> bool {
    [MKNOD, READ, WRITE].iter().all(|bit| {
        access & bit == 0
            || rules
                .iter()
                .rev()
                .find(|rule| {
                    rule.access & bit != 0
                        && rule.kind.is_none_or(|wanted| wanted == kind)
                        && rule.major.is_none_or(|wanted| wanted == major)
                        && rule.minor.is_none_or(|wanted| wanted == minor)
                })
                .is_some_and(|rule| rule.allow)
    })
}

proptest! {
    #[test]
    fn the_program_does_what_the_rules_say(
        rules in proptest::collection::vec(rule(), 0..8),
        kind in 1i32..3, major in 0u32..3, minor in 0u32..3, access in 1i32..8,
    ) {
        let program = Program(assemble(&rules));
        prop_assert_eq!(run(&program, kind, major, minor, access), reference(&rules, kind, major, minor, access));
    }
}
