//! From `ctr run` to the container's first output, and where the time goes.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use isopod_tests::{Bed, Runtime, bed::IMAGE, process};

use crate::table::{Goal, Row};

pub fn measure(bed: &Bed) -> Result<Vec<Row>> {
    let rounds = env::var("ISOPOD_BENCH_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(9);
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    // Alternating, so that a busy moment of the machine meets both.
    for round in 0..=rounds {
        let (one, other) = (
            first_output(bed, Runtime::Isopod)?,
            first_output(bed, Runtime::Runc)?,
        );
        // The first fills caches.
        if round > 0 {
            ours.push(one);
            others.push(other);
        }
    }
    let log = bed.log();
    let stage = |name: &str| median(stages(&log, name).into_iter().skip(1).collect());
    let mut rows = vec![
        Row::new("ctr run to first output", "ms", median(ours))
            .against("runc", median(others))
            .goal(Goal::AtMost(2500.0)),
        Row::new("  VM start", "ms", stage("VM start")),
        Row::new("  kernel to agent", "ms", stage("kernel to agent")).goal(Goal::AtMost(1000.0)),
        Row::new("  agent ready", "ms", stage("agent ready")),
    ];
    rows.extend(instructions(bed)?);
    Ok(rows)
}

/// Milliseconds.
fn first_output(bed: &Bed, runtime: Runtime) -> Result<f64> {
    let mut command = match runtime {
        Runtime::Isopod => bed
            .container()
            .command(&["--rm"], ["echo", "first-output"])?,
        Runtime::Runc => {
            let mut command = bed.ctr();
            command.args([
                "run",
                "--rm",
                IMAGE,
                &format!("runc{}", bed.next()),
                "echo",
                "first-output",
            ]);
            command
        }
    };
    let began = Instant::now();
    let mut run = isopod_tests::Background::start(&mut command)?;
    run.line(Duration::from_secs(120), |line| line == "first-output")?;
    let took = began.elapsed();
    run.finish(Duration::from_secs(60))?;
    Ok(took.as_secs_f64() * 1000.0)
}

/// The middle one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The times of one stage of every launch in a log, in milliseconds. The log has them as Rust shows a
/// duration: `name: \"VM start\", took: 124.29ms`.
fn stages(log: &str, name: &str) -> Vec<f64> {
    let mark = format!("name: \\\"{name}\\\", took: ");
    log.split(&mark)
        .skip(1)
        .filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (figure, unit) = rest.split_at(end);
            let scale = match unit {
                unit if unit.starts_with("ms") => 1.0,
                unit if unit.starts_with("µs") => 0.001,
                unit if unit.starts_with('s') => 1000.0,
                _ => return None,
            };
            Some(figure.parse::<f64>().ok()? * scale)
        })
        .collect()
}

/// Guest instructions from the kernel's entry to PID 1, as the kernel's own script counts them.
fn instructions(bed: &Bed) -> Result<Option<Row>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-kernel/measure");
    if !std::path::Path::new(script).exists() {
        return Ok(None);
    }
    let mut command = Command::new(script);
    command.arg(&bed.machine.kernel);
    let run = process::run(&mut command, None, Duration::from_secs(300))?
        .ok()
        .context("count instructions")?;
    let out = run.out();
    let figure = out
        .lines()
        .filter(|line| line.contains("instruction"))
        .find_map(|line| {
            let words = line.split_whitespace();
            words
                .filter_map(|word| word.replace('_', "").parse::<f64>().ok())
                .next()
        });
    let figure = figure.with_context(|| format!("no figure in {out:?}"))?;
    // In millions, when the script does not say so itself.
    let millions = if figure > 100_000.0 {
        figure / 1e6
    } else {
        figure
    };
    Ok(Some(
        Row::new("  kernel to PID 1", "M instr.", millions).goal(Goal::AtMost(100.0)),
    ))
}
