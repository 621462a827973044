//! Runs every test and adds up what the runners report, so that one line tells the whole.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

/// What a runner counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// What one run of `cargo test` came to.
struct Outcome {
    totals: Totals,
    /// Tests by name.
    failed: Vec<String>,
    success: bool,
}

/// The agent's tests need one that listens on a directory.
const UNIT: &[&str] = &[
    "--workspace",
    "--exclude",
    "isopod-tests",
    "--features",
    "isopod-agent/testing",
    "--no-fail-fast",
];
const E2E: &[&str] = &["--package", "isopod-tests", "--no-fail-fast"];

/// Runs the halves that `arguments` ask for; true when nothing failed.
pub fn run(arguments: &[String]) -> Result<bool> {
    let (flags, filters): (Vec<_>, Vec<_>) = arguments
        .iter()
        .map(String::as_str)
        .partition(|argument| ["--unit", "--e2e", "--no-run"].contains(argument));
    let unit = !flags.contains(&"--e2e") && filters.is_empty();
    let e2e = !flags.contains(&"--unit");
    if flags.contains(&"--no-run") {
        return Ok((!unit || built(UNIT)?) && (!e2e || built(E2E)?));
    }
    let mut outcomes = Vec::new();
    if unit {
        outcomes.push(twice(runner)?);
    }
    if e2e {
        outcomes.push(runner(E2E, &filters)?);
    }
    let sum = |count: fn(&Totals) -> u64| outcomes.iter().map(|o| count(&o.totals)).sum::<u64>();
    println!();
    println!(
        "{} passed, {} failed, {} skipped",
        sum(|totals| totals.passed),
        sum(|totals| totals.failed),
        sum(|totals| totals.skipped)
    );
    Ok(outcomes.iter().all(|outcome| outcome.success))
}

/// Runs the unit tests; those that fail get a second try one by one, as end-to-end cases do: shared
/// machines stall for seconds, a real fault fails again. What passed only then is told.
fn twice(run: impl Fn(&[&str], &[&str]) -> Result<Outcome>) -> Result<Outcome> {
    let mut first = run(UNIT, &[])?;
    if first.success || first.failed.is_empty() {
        return Ok(first);
    }
    println!("\nagain: {}", first.failed.join(", "));
    let mut arguments = vec!["--exact", "--test-threads=1"];
    arguments.extend(first.failed.iter().map(String::as_str));
    let second = run(UNIT, &arguments)?;
    let passed = |name: &&String| second.success && !second.failed.contains(name);
    let unsteady = first.failed.iter().filter(passed);
    for name in unsteady.clone() {
        println!("unsteady: {name} passed at the second try only");
    }
    let mended = u64::try_from(unsteady.count())?;
    first.totals.passed += mended;
    first.totals.failed = first.totals.failed.saturating_sub(mended);
    first.success = second.success && first.totals.failed == 0;
    Ok(first)
}

/// Builds the tests of one half.
fn built(selection: &[&str]) -> Result<bool> {
    let status = Command::new("cargo")
        .args(["test", "--locked", "--no-run"])
        .args(selection)
        .status()
        .context("start cargo test")?;
    Ok(status.success())
}

/// Runs `cargo test` with its output shown and counted.
fn runner(selection: &[&str], arguments: &[&str]) -> Result<Outcome> {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--locked"])
        .args(selection)
        .arg("--")
        .args(arguments);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo test")?;
    let stdout = child.stdout.take().context("cargo's output is piped")?;
    let mut terminal = std::io::stdout();
    let (mut totals, mut failed) = (Totals::default(), Vec::new());
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read cargo's output")?;
        terminal.write_all(&line)?;
        terminal.write_all(b"\n")?;
        let line = String::from_utf8_lossy(&line);
        failed.extend(failed_test(&line).map(str::to_owned));
        if let Some(more) = Totals::of_line(&line) {
            totals.passed += more.passed;
            totals.failed += more.failed;
            totals.skipped += more.skipped;
        }
    }
    Ok(Outcome {
        totals,
        failed,
        success: child.wait().context("wait for cargo test")?.success(),
    })
}

/// libtest's line of a failure: `test a::b ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

impl Totals {
    /// libtest's closing line: `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`.
    fn of_line(line: &str) -> Option<Self> {
        let counts = line
            .trim()
            .strip_prefix("test result: ")?
            .split_once(". ")?
            .1;
        let mut totals = Self::default();
        for count in counts.split(';') {
            let (number, word) = count.trim().split_once(' ')?;
            match word {
                "passed" => totals.passed = number.parse().ok()?,
                "failed" => totals.failed = number.parse().ok()?,
                "ignored" => totals.skipped = number.parse().ok()?,
                _ => break,
            }
        }
        Some(totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_is_understood() {
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(
            Totals::of_line(line),
            Some(Totals {
                passed: 12,
                failed: 1,
                skipped: 2
            })
        );
    }

    #[test]
    fn a_failed_test_is_known_by_name() {
        assert_eq!(failed_test("test a::b ... FAILED"), Some("a::b"));
        for line in [
            "test a::b ... ok",
            "test result: FAILED. 1 passed",
            "FAILED",
        ] {
            assert_eq!(failed_test(line), None);
        }
    }

    fn outcome(passed: u64, failed: &[&str]) -> Outcome {
        Outcome {
            totals: Totals {
                passed,
                failed: failed.len() as u64,
                skipped: 0,
            },
            failed: failed.iter().map(|&name| name.to_owned()).collect(),
            success: failed.is_empty(),
        }
    }

    #[test]
    fn a_test_that_fails_twice_has_failed() {
        let both = twice(|_, _| Ok(outcome(3, &["a"]))).unwrap();
        assert!(!both.success);
        assert_eq!(both.totals.failed, 1);
    }

    #[test]
    fn a_test_that_fails_once_is_unsteady() {
        let run = |_: &[&str], names: &[&str]| match names {
            [] => Ok(outcome(3, &["a"])),
            names => {
                assert_eq!(names, ["--exact", "--test-threads=1", "a"]);
                Ok(outcome(1, &[]))
            }
        };
        let mended = twice(run).unwrap();
        assert!(mended.success);
        assert_eq!((mended.totals.passed, mended.totals.failed), (4, 0));
    }

    #[test]
    fn a_run_that_fails_without_a_failed_test_has_failed() {
        let broken = || Outcome {
            success: false,
            ..outcome(0, &[])
        };
        assert!(!twice(|_, _| Ok(broken())).unwrap().success);
        let run = |_: &[&str], names: &[&str]| match names {
            [] => Ok(outcome(3, &["a"])),
            _ => Ok(broken()),
        };
        assert!(!twice(run).unwrap().success);
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            "",
            "running 3 tests",
            "test result: ",
            "test a::b ... ok",
            "test result: ok. x passed",
        ] {
            assert_eq!(Totals::of_line(line), None, "{line}");
        }
    }
}
