//! From `ctr run` to the container's first output, and where the time goes.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use isopod_tests::{Bed, Runtime, bed::IMAGE, machine, process};

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
    let stage = |name: &str| -> Result<f64> {
        let times: Vec<f64> = stages(&log, name).into_iter().skip(1).collect();
        anyhow::ensure!(
            times.len() == rounds,
            "{} times of {name:?} in the log",
            times.len()
        );
        Ok(median(times))
    };
    let mut rows = vec![
        Row::new("ctr run to first output", "ms", median(ours))
            .against("runc", median(others))
            .goal(Goal::AtMost(2500.0)),
        Row::new("  VM start", "ms", stage("VM start")?),
        Row::new("  kernel to agent", "ms", stage("kernel to agent")?).goal(Goal::AtMost(1000.0)),
        Row::new("  agent ready", "ms", stage("agent ready")?),
    ];
    rows.push(instructions(bed)?);
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

/// The times of one stage of every launch in a log, in milliseconds: the log has
/// `stages="VM start: 39 ms, kernel to agent: 1089 ms, agent ready: 35 ms"`.
fn stages(log: &str, name: &str) -> Vec<f64> {
    let mark = format!("{name}: ");
    log.lines()
        .filter_map(|line| line.split_once("stages=\""))
        .filter_map(|(_, stages)| {
            let (_, rest) = stages.split_once(&mark)?;
            rest.split_once(" ms")?.0.parse().ok()
        })
        .collect()
}

/// Guest instructions from the kernel's entry to PID 1, as the kernel's own script counts them.
fn instructions(bed: &Bed) -> Result<Row> {
    let script = machine::workspace().join("guest-kernel/measure");
    let mut command = Command::new(script);
    command.arg(&bed.machine.kernel);
    let run = process::run(&mut command, None, Duration::from_secs(300))?
        .ok()
        .context("count instructions")?;
    let out = run.out();
    let line = out
        .lines()
        .find_map(|line| line.strip_prefix("kernel entry to PID 1"));
    let figure = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    let millions = figure.with_context(|| format!("no figure in {out:?}"))?;
    Ok(Row::new("  kernel to PID 1", "M instr.", millions).goal(Goal::AtMost(100.0)))
}
