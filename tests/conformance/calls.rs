//! The Task API, call by call and state by state: what the shim answers, and what state it leaves.
//!
//! `cases/calls.toml` is the table. Shims are asked directly, as containerd asks them, because it and its
//! clients would not make most of these calls. All rows of one state share a container until one changes it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use isopod_tests::{
    Bed, Runtime,
    shim::{Code, Empty, Refusal, api},
};
use serde::Deserialize;

use crate::subject::{Pod, Subject};

/// Call -> state -> answer.
type Table = BTreeMap<String, BTreeMap<String, Row>>;

/// An answer is a code, and, after a comma, the state that follows if it is another. `WAITS` is no
/// answer; `CRASHES` is one that is not asked for, because it is the shim's end.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Row {
    /// Of both runtimes.
    Same(String),
    /// Where they differ.
    Differs {
        runc: String,
        isopod: String,
        /// The heading in docs/conformance.md that explains it.
        why: String,
    },
}

impl Row {
    fn expected(&self, runtime: Runtime) -> &str {
        match (self, runtime) {
            (Self::Same(answer), _) => answer,
            (Self::Differs { runc, .. }, Runtime::Runc) => runc,
            (Self::Differs { isopod, .. }, Runtime::Isopod) => isopod,
        }
    }
}

/// The states in which a call finds what it names, in the order of the test. `exec-early` is an exec of a
/// container that was created and not started; `empty` is a shim that has not created anything yet.
pub const STATES: [&str; 12] = [
    "empty",
    "unknown",
    "created",
    "running",
    "paused",
    "stopped",
    "terminal",
    "exec-unknown",
    "exec-early",
    "exec-created",
    "exec-running",
    "exec-stopped",
];
/// How long a call that is to wait is watched.
const WHILE: Duration = Duration::from_millis(300);
/// How long an answer, or the state after it, may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn parse(text: &str) -> Result<Table> {
    let table: Table = toml::from_str(text).context("cases/calls.toml")?;
    for (call, rows) in &table {
        for state in rows.keys() {
            ensure!(
                STATES.contains(&state.as_str()),
                "{call}: no state {state:?}"
            );
        }
    }
    Ok(table)
}

/// The number of rows, and those that differ with their headings.
pub fn differences(text: &str) -> Result<(usize, Vec<(String, String)>)> {
    let mut all = 0;
    let mut differing = Vec::new();
    for (call, rows) in parse(text)? {
        all += rows.len();
        for (state, row) in rows {
            if let Row::Differs { why, .. } = row {
                differing.push((format!("calls::{call} ({state})"), why));
            }
        }
    }
    Ok((all, differing))
}

/// Calls that succeed or wait, with the state that they find and, if it is another, the one they leave.
pub fn successes(text: &str) -> Result<Vec<(String, &'static str, Option<String>)>> {
    let mut all = Vec::new();
    for (call, rows) in parse(text)? {
        for state in STATES {
            let expected = rows.get(state).map(|row| row.expected(Runtime::Isopod));
            let (code, after) =
                match expected.map(|text| text.split_once(", ").unwrap_or((text, ""))) {
                    Some((code @ ("OK" | "WAITS"), after)) => (code, after),
                    _ => continue,
                };
            let after = (code == "OK" && !after.is_empty()).then(|| after.to_owned());
            all.push((call.clone(), state, after));
        }
    }
    Ok(all)
}

/// A state of the table; `None` is gone.
pub fn status(name: Option<&str>, before: Option<api::Status>) -> Option<api::Status> {
    let Some(text) = name else { return before };
    let all = [
        api::Status::CREATED,
        api::Status::RUNNING,
        api::Status::PAUSED,
        api::Status::STOPPED,
    ];
    all.into_iter().find(|status| name_of(*status) == text)
}

/// Makes every call of the table.
pub fn run(bed: &Bed, text: &str) -> Result<()> {
    let table = parse(text)?;
    let pod = Pod::start(bed)?;
    let mut wrong = String::new();
    for state in STATES {
        if state == "unknown" {
            pod.begin()?;
        }
        let mut subject = pod.subject(state)?;
        let rows = |(call, rows): (&'_ String, &'_ BTreeMap<String, Row>)| {
            Some((call.clone(), rows.get(state)?.clone()))
        };
        for (call, row) in table.iter().filter_map(rows) {
            let expected = row.expected(bed.runtime);
            if expected == "CRASHES" {
                continue;
            }
            let made = make(&pod, &call, &subject, expected);
            let (said, message) = made.with_context(|| format!("{call} ({state})"))?;
            if said != expected {
                writeln!(wrong, "{call} ({state}): {said}, not {expected}: {message}")?;
            }
            // What was refused has changed nothing, which has just been seen.
            if said.starts_with("OK") {
                pod.end(&subject)
                    .with_context(|| format!("the end after {call} ({state})"))?;
                subject = pod.subject(state)?;
            }
        }
        pod.end(&subject)
            .with_context(|| format!("the end of {state}"))?;
    }
    let finished = pod.finish();
    ensure!(wrong.is_empty(), "on {}:\n{wrong}", bed.runtime.name());
    finished
}

/// Makes one call; answers what the table should say of it, and the refusal's words.
fn make(pod: &Pod<'_>, call: &str, subject: &Subject, expected: &str) -> Result<(String, String)> {
    let mut observer = pod.shim.caller()?;
    let before = observer.status(&subject.id, &subject.exec)?;
    // Dropped at the end, as the connection of a caller that has lost patience.
    let mut caller = pod.shim.caller()?;
    let (method, request) = pod.request(call, subject)?;
    caller.send(method, request)?;
    let limit = if expected == "WAITS" { WHILE } else { PATIENCE };
    let answer: Option<Result<Empty, Refusal>> = caller.answer(limit)?;
    let (code, message) = match answer {
        None => ("WAITS".to_owned(), String::new()),
        Some(Ok(_)) => (format!("{:?}", Code::OK), String::new()),
        Some(Err(refusal)) => (format!("{:?}", refusal.code), refusal.message),
    };
    let wanted = expected.split_once(", ").map(|(_, state)| state.to_owned());
    let wanted = wanted.unwrap_or_else(|| name(&before));
    let until = Instant::now() + PATIENCE;
    let after = loop {
        let now = observer.status(&subject.id, &subject.exec)?;
        // A signal is sent before the process has ended.
        if name(&now) == wanted || !code.contains("OK") || Instant::now() > until {
            break now;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = if after == before {
        code
    } else {
        format!("{code}, {}", name(&after))
    };
    Ok((said, message))
}

fn name(status: &Result<api::Status, Code>) -> String {
    match status {
        Ok(status) => name_of(*status),
        Err(Code::NOT_FOUND) => "gone".to_owned(),
        Err(code) => format!("state {code:?}"),
    }
}

fn name_of(status: api::Status) -> String {
    format!("{status:?}").to_lowercase()
}
