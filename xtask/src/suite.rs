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

/// Runs the halves that `arguments` ask for; true when nothing failed.
pub fn run(arguments: &[String]) -> Result<bool> {
    let (flags, filters): (Vec<_>, Vec<_>) = arguments
        .iter()
        .map(String::as_str)
        .partition(|argument| ["--unit", "--e2e"].contains(argument));
    let unit = !flags.contains(&"--e2e") && filters.is_empty();
    let e2e = !flags.contains(&"--unit");
    let mut totals = Totals::default();
    let mut clean = true;
    if unit {
        clean &= runner(
            // The agent's tests that need one to listen on a directory.
            &[
                "--workspace",
                "--exclude",
                "isopod-tests",
                "--features",
                "isopod-agent/testing",
            ],
            &[],
            &mut totals,
        )?;
    }
    if e2e {
        clean &= runner(
            &["--package", "isopod-tests", "--no-fail-fast"],
            &filters,
            &mut totals,
        )?;
    }
    println!();
    println!(
        "{} passed, {} failed, {} skipped",
        totals.passed, totals.failed, totals.skipped
    );
    Ok(clean && totals.failed == 0)
}

/// Runs `cargo test` with its output shown and counted; false when it failed.
fn runner(selection: &[&str], filters: &[&str], totals: &mut Totals) -> Result<bool> {
    let mut command = Command::new("cargo");
    command
        .args(["test", "--locked"])
        .args(selection)
        .arg("--")
        .args(filters);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo test")?;
    let stdout = child.stdout.take().context("cargo's output is piped")?;
    let mut terminal = std::io::stdout();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read cargo's output")?;
        terminal.write_all(&line)?;
        terminal.write_all(b"\n")?;
        if let Some(more) = Totals::of_line(&String::from_utf8_lossy(&line)) {
            totals.passed += more.passed;
            totals.failed += more.failed;
            totals.skipped += more.skipped;
        }
    }
    Ok(child.wait().context("wait for cargo test")?.success())
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
