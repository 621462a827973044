//! Cases that run once more on isopod's own monitor, whichever engine the others run on.
//!
//! Where this machine's KVM interprets guests' kernels, a boot takes a minute or two: there is one pod, of
//! two processors, which these cases share. Each finds it as another left it and must leave it so.
//!
//! ```text
//! suite ── the first such case that is wanted ──> bed: pod booted ─ case ─ case ─ ... ─ pod ended
//!    every other one waits, and is told what came of it      └─ a line of JSON for each
//! ```

use std::{
    collections::BTreeMap,
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{Bed, Case, Container, Finished, leftovers::Snapshot, process};

/// An interpreted kernel takes ten times as long as QEMU's translated one, on processors of its own.
const PATIENCE: u32 = 20;
/// Seconds of two processors that do little else; a busy machine has given a guest a quarter of one.
const BOOT: u64 = 1500;
/// The container that keeps the pod.
pub(crate) const POD: &str = "smoke";

/// How long a pod may take with so many cases, on processors that do little else.
pub(crate) fn limit(cases: usize) -> Duration {
    let cases = u64::try_from(cases).unwrap_or(u64::MAX);
    Duration::from_secs(BOOT.saturating_add(cases.saturating_mul(150)))
}

/// What came of each case, by name: why it failed, if it did.
pub(crate) type Outcomes = BTreeMap<String, Option<String>>;

/// How one case went, as the bed tells it.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    case: String,
    seconds: u64,
    error: Option<String>,
}

/// In the bed: runs the cases in one pod, and tells on standard output.
pub(crate) fn run(bed: &Bed, mut cases: Vec<(String, Case)>) -> Result<()> {
    process::be_patient(PATIENCE);
    cases.sort_by_key(|(_, case)| case.smoke);
    let before = Snapshot::take(bed)?;
    bed.settings
        .borrow_mut()
        .set("", "engine", "\"kvm\"")
        .set("vm", "cpus", 2)
        .set("debug", "console", true)
        .set("timeouts", "boot", BOOT)
        .set("timeouts", "request", 300);
    let settings = bed.settings.borrow().clone();
    let began = Instant::now();
    let pod = start(bed).context("start the pod")?;
    eprintln!("the pod started in {:?}", began.elapsed());
    bed.pod.replace(Some(POD.to_owned()));
    for (name, case) in cases {
        let began = Instant::now();
        bed.settings.replace(settings.clone());
        let outcome = in_pod(bed, &case);
        let told = Told {
            case: name,
            seconds: began.elapsed().as_secs(),
            error: outcome.err().map(|error| format!("{error:#}")),
        };
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&told)?)?;
    }
    pod.end().context("end the pod")?;
    before.assert_restored(bed)
}

fn start(bed: &Bed) -> Result<Container<'_>> {
    let annotations = [
        "--annotation",
        "io.kubernetes.cri.container-type=sandbox",
        "--annotation",
        &format!("io.kubernetes.cri.sandbox-id={POD}"),
    ];
    bed.container().named(POD).flags(annotations).sleeping()
}

fn in_pod(bed: &Bed, case: &Case) -> Result<()> {
    let before = Snapshot::take(bed)?;
    (case.body)(bed)?;
    before.assert_restored(bed)
}

/// What a bed told of these cases; of those that it did not reach, why.
pub(crate) fn outcomes(names: &[String], bed: &Finished) -> Outcomes {
    let out = bed.out();
    let told: Vec<Told> = out
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    for Told { case, seconds, .. } in &told {
        eprintln!("{case} took {seconds} s");
    }
    let failure = (bed.code != 0).then(|| process::shorten(&bed.err()));
    let told = told.into_iter().map(|told| (told.case, told.error));
    let mut outcomes: Outcomes = told.collect();
    let reached = outcomes.len();
    // The first tells why; the others refer to it.
    let mut first: Option<&String> = None;
    for name in names {
        if outcomes.contains_key(name) {
            continue;
        }
        let why = match first {
            Some(first) => format!("the pod did not get so far: see {first}"),
            None => failure
                .clone()
                .unwrap_or_else(|| "nothing was told of it".to_owned()),
        };
        first = first.or(Some(name));
        outcomes.insert(name.clone(), Some(why));
    }
    // All passed, and then the pod did not end as it should: the last one answers for it.
    if reached == names.len()
        && let (Some(failure), Some(mut last)) = (failure, outcomes.last_entry())
    {
        last.get_mut().get_or_insert(failure);
    }
    outcomes
}

/// Runs the cases in a pod; those that fail get their second try in a fresh one: shared machines stall
/// for seconds, and a real fault fails twice. Answers also which passed only then.
pub(crate) fn with_second_try(
    names: &[String],
    run: impl Fn(&[String]) -> Result<Finished>,
) -> (Outcomes, Vec<String>) {
    let run = |names: &[String]| match run(names) {
        Ok(bed) => outcomes(names, &bed),
        Err(error) => {
            let failed = |name: &String| (name.clone(), Some(format!("{error:#}")));
            names.iter().map(failed).collect()
        }
    };
    let mut outcomes = run(names);
    let mut failed = Vec::new();
    for (name, error) in &outcomes {
        if let Some(error) = error {
            eprintln!("{name} failed and is tried once more:\n{error}");
            failed.push(name.clone());
        }
    }
    if !failed.is_empty() {
        outcomes.extend(run(&failed));
        failed.retain(|name| outcomes.get(name) == Some(&None));
    }
    (outcomes, failed)
}

/// One case's own part of what was told.
pub(crate) fn outcome(outcomes: &Outcomes, name: &str) -> Result<()> {
    match outcomes.get(name) {
        Some(None) => Ok(()),
        Some(Some(error)) => bail!("{error}"),
        None => bail!("it was not among those that the pod was asked for"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn finished(code: i32, out: &str) -> Finished {
        Finished {
            code,
            stdout: out.into(),
            stderr: b"the reason".into(),
            took: Duration::ZERO,
        }
    }

    const PASSED: &str = "{\"case\":\"a\",\"seconds\":3,\"error\":null}\n";

    #[test]
    fn each_case_has_its_own_outcome() {
        let out = format!("noise\n{PASSED}{{\"case\":\"b\",\"seconds\":1,\"error\":\"no\"}}\n");
        let all = outcomes(&["a".into(), "b".into()], &finished(0, &out));
        assert!(outcome(&all, "a").is_ok());
        assert_eq!(outcome(&all, "b").unwrap_err().to_string(), "no");
        assert!(outcome(&all, "c").is_err());
    }

    #[test]
    fn a_case_that_was_not_reached_has_failed() {
        let all = outcomes(&["a".into(), "b".into()], &finished(124, PASSED));
        assert!(outcome(&all, "a").is_ok());
        assert_eq!(outcome(&all, "b").unwrap_err().to_string(), "the reason");
    }

    #[test]
    fn a_pod_that_does_not_end_well_is_not_overlooked() {
        let all = outcomes(&["a".into()], &finished(1, PASSED));
        assert!(outcome(&all, "a").is_err());
    }

    #[test]
    fn what_fails_is_tried_once_more() {
        let names = ["a".to_owned(), "b".to_owned()];
        let run = |names: &[String]| match names {
            [_, _] => Ok(finished(1, PASSED)),
            [b] => Ok(finished(0, &PASSED.replace("\"a\"", &format!("{b:?}")))),
            _ => bail!("these were not asked for"),
        };
        let (all, unsteady) = with_second_try(&names, run);
        assert!(outcome(&all, "a").is_ok() && outcome(&all, "b").is_ok());
        assert_eq!(unsteady, ["b"]);

        let (all, unsteady) = with_second_try(&names, |_| bail!("no bed"));
        assert_eq!(outcome(&all, "a").unwrap_err().to_string(), "no bed");
        assert!(unsteady.is_empty());
    }
}
