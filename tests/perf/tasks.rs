//! Calls on a running pod, as `ctr` makes them: what `ctr` itself takes is in both figures.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use isopod_tests::{Bed, Container, Runtime, bed::IMAGE, process};

use crate::{start::median, table::Row};

const ROUNDS: usize = 9;
const PARALLEL: usize = 100;
const LIMIT: Duration = Duration::from_secs(300);
const KIND: &str = "io.kubernetes.cri.container-type";
const POD: &str = "io.kubernetes.cri.sandbox-id";

/// Rounds alternate between the runtimes, so that a busy moment of the machine meets both.
pub fn measure(bed: &Bed) -> Result<Vec<Row>> {
    let pods = [Runtime::Isopod, Runtime::Runc].map(|runtime| start(bed, runtime, None));
    let [ours, theirs] = pods;
    let pods = [(Runtime::Isopod, ours?), (Runtime::Runc, theirs?)];
    type Act = fn(&Bed, Runtime, &Container<'_>) -> Result<f64>;
    let acts: [(&str, usize, Act); 4] = [
        ("container in a running pod", ROUNDS, container),
        ("exec", ROUNDS, exec),
        ("100 execs at once", 3, execs),
        ("metrics", ROUNDS, metrics),
    ];
    let mut rows = Vec::new();
    for (name, rounds, act) in acts {
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for ((runtime, pod), figures) in pods.iter().zip(&mut figures) {
                figures.push(act(bed, *runtime, pod)?);
            }
        }
        let [ours, theirs] = figures.map(median);
        rows.push(Row::new(name, "ms", ours).against("runc", theirs));
    }
    for (_, pod) in &pods {
        pod.end()?;
    }
    Ok(rows)
}

/// Starts a pod's first container, or one more of the pod.
fn start<'b>(bed: &'b Bed, runtime: Runtime, pod: Option<&str>) -> Result<Container<'b>> {
    let id = format!("{}{}", runtime.name(), bed.next());
    let kind = if pod.is_none() {
        "sandbox"
    } else {
        "container"
    };
    let kind = format!("{KIND}={kind}");
    let pod = format!("{POD}={}", pod.unwrap_or(&id));
    let flags = ["--annotation", &kind, "--annotation", &pod];
    let sleep = ["sleep", "100000"];
    if runtime == Runtime::Isopod {
        return bed.container().named(&id).flags(flags).start(sleep);
    }
    let mut command = bed.ctr();
    command.args(["run", "--detach", "--null-io"]);
    command.args(flags).args([IMAGE, &id]).args(sleep);
    process::run(&mut command, None, LIMIT)?.ok()?;
    Ok(Container::existing(bed, &id))
}

/// Milliseconds.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let began = Instant::now();
    let done = work()?;
    Ok((began.elapsed().as_secs_f64() * 1000.0, done))
}

fn container(bed: &Bed, runtime: Runtime, pod: &Container<'_>) -> Result<f64> {
    let (took, container) = timed(|| start(bed, runtime, Some(&pod.id)))?;
    container.end()?;
    Ok(took)
}

fn exec(_: &Bed, _: Runtime, pod: &Container<'_>) -> Result<f64> {
    Ok(timed(|| pod.exec(["true"])?.ok())?.0)
}

fn execs(_: &Bed, _: Runtime, pod: &Container<'_>) -> Result<f64> {
    let commands = (0..PARALLEL).map(|_| pod.exec_command(&[], ["true"]));
    let commands: Vec<Command> = commands.collect();
    let all = || {
        let running = commands.into_iter().map(|mut command| {
            thread::spawn(move || process::run(&mut command, None, LIMIT)?.ok().map(drop))
        });
        let running: Vec<_> = running.collect();
        for one in running {
            let done = one
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            done.context("one of the execs")?;
        }
        Ok(())
    };
    Ok(timed(all)?.0)
}

fn metrics(bed: &Bed, _: Runtime, pod: &Container<'_>) -> Result<f64> {
    Ok(timed(|| bed.ctr_run(["task", "metrics", &pod.id])?.ok())?.0)
}
