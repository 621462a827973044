//! `isopod-bench`: how fast and how small, as a table and as JSON in `target/bench/`.
//!
//! Runs in a bed like any case. Arguments select sections by name (start, tasks, memory, files, channel,
//! monitor, devices); none:
//! all. `ISOPOD_BENCH_ROUNDS` is the number of starts (default 9).
#![forbid(unsafe_code)]

mod channel;
mod devices;
mod files;
mod memory;
mod monitor;
mod peer;
mod start;
mod table;
mod tasks;

use std::{env, fs, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};
use isopod_tests::{
    Bed, Machine, Need, Runtime,
    bed::{self, Role},
    image::Files,
    probe,
};
use serde_json::{Map, Value};

use crate::table::Row;

/// A section: its name, and what it measures.
type Section = (&'static str, fn(&Bed) -> Result<Vec<Row>>);

const SECTIONS: &[Section] = &[
    ("start", start::measure),
    ("tasks", tasks::measure),
    ("memory", memory::measure),
    ("files", files::measure),
    ("channel", channel::measure),
    ("monitor", monitor::measure),
    ("devices", devices::measure),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == peer::ROLE) {
        return told(peer::serve().map(|()| ExitCode::SUCCESS));
    }
    told(match bed::role() {
        Role::Suite => outside(&arguments),
        Role::Init => bed::init().map(|code| ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Role::Body(selected) => inside(&selected).map(|()| ExitCode::SUCCESS),
    })
}

fn told(outcome: Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("isopod-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn outside(arguments: &[String]) -> Result<ExitCode> {
    let machine = Machine::find();
    for need in [Need::Containers, Need::Isopod] {
        if let Some(why) = machine.lacks(need) {
            bail!("{why}");
        }
    }
    if let Some(unknown) = arguments
        .iter()
        .find(|word| SECTIONS.iter().all(|(name, _)| name != word))
    {
        bail!("there is no section {unknown:?}");
    }
    eprintln!("building the probe ...");
    probe::build(&machine)?;
    if selects(&arguments.join(","), "devices") {
        eprintln!("building the benchmark of devices ...");
        devices::build()?;
    }
    let namespace = format!("isopod-bench-{}", std::process::id());
    let code = bed::make_shown(&arguments.join(","), &namespace)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Whether a section is among those that were asked for; none: all are.
fn selects(selected: &str, section: &str) -> bool {
    selected.is_empty() || selected.split(',').any(|word| word == section)
}

/// The body of the bed.
fn inside(selected: &str) -> Result<()> {
    let machine = Machine::find();
    let out = machine.target_dir.join("bench");
    let mut files = Files::new();
    files.insert(
        probe::PATH.to_owned(),
        probe::bytes(&probe::build(&machine)?)?,
    );
    let bed = Bed::enter(machine, Runtime::Isopod, &files).context("make the bed")?;
    bed.settings.borrow_mut().set("", "log_level", "\"info\"");
    fs::create_dir_all(&out)?;
    for (name, measure) in SECTIONS {
        if !selects(selected, name) {
            continue;
        }
        eprintln!("measuring: {name} ...");
        let rows = measure(&bed).with_context(|| format!("section {name}\n{}", bed.log()))?;
        table::print(name, &rows);
        write(&out.join(format!("{name}.json")), &rows)?;
    }
    println!("\nwritten to {}", out.display());
    Ok(())
}

fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let all: Map<String, Value> = rows
        .iter()
        .map(|row| (row.name.clone(), row.json()))
        .collect();
    fs::write(path, serde_json::to_vec_pretty(&all)?)
        .with_context(|| format!("write {}", path.display()))
}
