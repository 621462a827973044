//! What a case says, and whether a runtime does it.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use anyhow::{Context, Result, bail, ensure};
use isopod_tests::{Bed, Container, Finished, Runtime, check_eq};
use serde::Deserialize;

use crate::{
    bundle::{self, Volume},
    calls,
    fields::Shown,
};

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

/// One bundle and its expectation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Unique in its file.
    name: String,
    /// JSON merge patch (RFC 7396) of the specification; `"list+": [...]` appends to a list. `@dir@` is a
    /// fresh directory of the host with `file`, `busybox` and `sub/inner` in it.
    #[serde(default = "empty")]
    pub patch: String,
    /// A script for the container's shell. Without it the patch gives the arguments.
    pub run: Option<String>,
    /// Which field the bad value is of, where the patch has others too.
    field: Option<String>,
    /// Where it does not run: the only runtime that can.
    only: Option<String>,
    /// The first containerd, as in `1.7`, whose copy of the specification has the field: older ones drop
    /// what they do not know.
    containerd: Option<String>,
    /// The first containerd whose client puts options of its own in the place of those that lead isopod
    /// to the test's settings.
    before: Option<String>,
    /// What isopod does, where it is something else.
    isopod: Option<Expected>,
    /// The heading in docs/conformance.md that explains `only` or `isopod`.
    why: Option<String>,
    // The expectation, as in `Expected`: serde cannot refuse unknown names of a flattened structure.
    prints: Option<String>,
    contains: Option<String>,
    lacks: Option<String>,
    complains: Option<String>,
    exit: Option<i32>,
    fails: Option<String>,
    leaves: Option<String>,
}

fn empty() -> String {
    "{}".to_owned()
}

/// What must come of it. What is absent is not looked at, except the exit code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// All of standard output, without white space at its ends.
    prints: Option<String>,
    /// A part of standard output.
    contains: Option<String>,
    /// Not a part of standard output.
    lacks: Option<String>,
    /// A part of standard error.
    complains: Option<String>,
    /// The exit code; 0 when absent.
    exit: Option<i32>,
    /// It is refused before the command's first instruction, with these words.
    fails: Option<String>,
    /// What `@dir@/left` holds once the container is removed.
    leaves: Option<String>,
}

impl Case {
    fn runs_on(&self, runtime: Runtime) -> bool {
        self.only
            .as_deref()
            .is_none_or(|only| only == runtime.name())
    }

    fn expected(&self, runtime: Runtime) -> Expected {
        match (&self.isopod, runtime) {
            (Some(own), Runtime::Isopod) => own.clone(),
            _ => Expected {
                prints: self.prints.clone(),
                contains: self.contains.clone(),
                lacks: self.lacks.clone(),
                complains: self.complains.clone(),
                exit: self.exit,
                fails: self.fails.clone(),
                leaves: self.leaves.clone(),
            },
        }
    }
}

fn parse(text: &str) -> Result<Vec<Case>> {
    Ok(toml::from_str::<Table>(text)?.case)
}

/// Checks the tables themselves; answers their summary, with every difference between the runtimes.
pub fn check(tables: &[(&str, &str)], calls: &str, explanations: &str) -> Result<String> {
    let headings: BTreeSet<&str> = explanations
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let (mut both, mut single, mut differences) = (0, 0, String::new());
    let mut used = BTreeSet::new();
    let mut shown = Shown::default();
    for (group, text) in tables {
        let cases = parse(text).with_context(|| format!("cases/{group}.toml"))?;
        let mut names = BTreeSet::new();
        for case in &cases {
            let name = format!("{group}::{}", case.name);
            ensure!(names.insert(&case.name), "{name}: two cases of this name");
            for runtime in [Runtime::Runc, Runtime::Isopod] {
                let nothing = case.expected(runtime) == Expected::default();
                ensure!(
                    !nothing || !case.runs_on(runtime),
                    "{name}: it expects nothing"
                );
            }
            if case.only.is_none() {
                both += 1;
            } else {
                single += 1;
            }
            let refused = |runtime| case.runs_on(runtime) && case.expected(runtime).fails.is_some();
            let fails = refused(Runtime::Isopod) || refused(Runtime::Runc);
            let works = !refused(Runtime::Isopod) && case.runs_on(Runtime::Isopod);
            shown
                .add(&case.patch, works, fails, case.field.as_deref())
                .with_context(|| name.clone())?;
            if case.only.is_none() && case.isopod.is_none() {
                ensure!(
                    case.why.is_none(),
                    "{name}: there is no difference to explain"
                );
                continue;
            }
            let why = case.why.as_deref();
            let why = why.with_context(|| format!("{name}: a difference without `why`"))?;
            ensure!(
                headings.contains(why),
                "{name}: docs/conformance.md has no section {why:?}"
            );
            used.insert(why.to_owned());
            let what = case
                .only
                .as_deref()
                .map_or("differs".to_owned(), |only| format!("{only} only"));
            writeln!(differences, "  {name}: {what}: {why}")?;
        }
    }
    let fields = shown.check()?;
    let (rows, differing) = calls::differences(calls)?;
    for (name, why) in differing {
        ensure!(
            headings.contains(why.as_str()),
            "{name}: docs/conformance.md has no section {why:?}"
        );
        writeln!(differences, "  {name}: {why}")?;
        used.insert(why);
    }
    if let Some(unused) = headings.iter().find(|heading| !used.contains(**heading)) {
        bail!("docs/conformance.md explains {unused:?}, which no case shows");
    }
    Ok(format!(
        "{both} bundles for both runtimes and {single} for one, {fields} fields of the specification, {rows} calls; \
         where the runtimes differ:\n{differences}"
    ))
}

/// Runs a file's cases as containers of one pod. `ISOPOD_CONFORMANCE` selects by a part of the name.
pub fn run(bed: &Bed, group: &str, text: &str) -> Result<()> {
    let selected = std::env::var("ISOPOD_CONFORMANCE").unwrap_or_default();
    let pod = bundle::pod(bed)?;
    let containerd = bundle::containerd_version(bed)?;
    let mut failures = String::new();
    let mut count = 0;
    for case in parse(text)? {
        let known = |first: &String| containerd >= bundle::version(first);
        if !case.containerd.as_ref().is_none_or(known) {
            continue;
        }
        if bed.runtime == Runtime::Isopod && case.before.as_ref().is_some_and(known) {
            continue;
        }
        if !case.runs_on(bed.runtime) || !case.name.contains(&selected) {
            continue;
        }
        count += 1;
        if let Err(error) = one(bed, &case) {
            writeln!(failures, "{group}::{}: {error:#}", case.name)?;
        }
    }
    end(&pod)?;
    if !failures.is_empty() {
        bail!("of {count} cases on {}:\n{failures}", bed.runtime.name());
    }
    Ok(())
}

fn end(pod: &Container<'_>) -> Result<()> {
    check_eq!(
        pod.status()?.as_deref(),
        Some("RUNNING"),
        "the pod after its cases"
    );
    pod.end()
}

fn one(bed: &Bed, case: &Case) -> Result<()> {
    let volume = Volume::make(bed)?;
    let spec = bundle::spec_of(bed, case, &volume)?;
    let run = bed.container().spec(&spec)?;
    let finished = run.run([])?;
    let expected = case.expected(bed.runtime);
    let result = judge(&expected, &finished).and_then(|()| match &expected.leaves {
        Some(text) => {
            let left = fs::read_to_string(volume.path("left")).unwrap_or_default();
            check_eq!(left.trim(), text.as_str(), "@dir@/left");
            Ok(())
        }
        None => Ok(()),
    });
    if expected.fails.is_some() || result.is_err() {
        // `ctr run --rm` leaves the container's record when there was no task.
        let _ = bed.ctr_run(["container", "delete", run.id()]);
    }
    volume.remove()?;
    result
}

fn judge(expected: &Expected, finished: &Finished) -> Result<()> {
    let (out, err) = (finished.out(), finished.err());
    let said = format!("exit {}, printed {out:?}, said {err:?}", finished.code);
    if let Some(words) = &expected.fails {
        ensure!(finished.code != 0 && out.is_empty(), "it ran: {said}");
        ensure!(err.contains(words), "it fails without {words:?}: {said}");
        return Ok(());
    }
    ensure!(finished.code == expected.exit.unwrap_or(0), "{said}");
    if let Some(text) = &expected.prints {
        ensure!(out.trim() == text.trim(), "not {text:?}: {said}");
    }
    if let Some(text) = &expected.contains {
        ensure!(out.contains(text), "without {text:?}: {said}");
    }
    if let Some(text) = &expected.lacks {
        ensure!(!out.contains(text), "with {text:?}: {said}");
    }
    if let Some(text) = &expected.complains {
        ensure!(err.contains(text), "no complaint {text:?}: {said}");
    }
    Ok(())
}
