//! Shared files: isopod-fs against Debian's virtiofsd, the same guest, the same probe, the same disk.

use anyhow::{Context, Result};
use isopod_tests::{
    Bed, Container, Machine, Need,
    probe::PATH,
    spec::{privilege, spec},
};
use serde_json::{Value, json};

use crate::{
    peer,
    start::median,
    table::{Goal, Row},
};

/// Rounds of reading and writing, which take a few seconds each.
const ROUNDS: usize = 9;
/// The first of these also make many files, which takes half a minute.
const MANY_FILES: usize = 3;
/// Figures of the probe: its key, what it is, its unit, and whether more is better.
const FIGURES: &[(&str, &str, &str, bool)] = &[
    ("write_mib_s", "sequential write", "MiB/s", true),
    ("read_mib_s", "sequential read", "MiB/s", true),
    ("random_read_mib_s", "random read, 4 KiB", "MiB/s", true),
    ("random_write_mib_s", "random write, 4 KiB", "MiB/s", true),
    ("create_us", "create 10 000 files", "ms", false),
    ("stat_us", "stat 10 000 files", "ms", false),
    ("list_us", "list 10 000 files", "ms", false),
    ("unlink_us", "unlink 10 000 files", "ms", false),
];

/// Rounds alternate between two pods, so that a busy moment of the machine meets both servers.
pub fn measure(bed: &Bed) -> Result<Vec<Row>> {
    let ours = pod(bed).context("isopod-fs")?;
    let other = match Machine::find().lacks(Need::Virtiofsd) {
        Some(why) => {
            eprintln!("not compared: {why}");
            None
        }
        None => {
            let good = bed.settings.borrow().clone();
            let program = peer::program(bed)?;
            bed.settings.borrow_mut().path("file_server", &program);
            let theirs = pod(bed).context("virtiofsd");
            *bed.settings.borrow_mut() = good;
            Some(theirs?)
        }
    };
    let (mut our_rounds, mut their_rounds) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("  round {round} of {ROUNDS} ...");
        let many = round <= MANY_FILES;
        our_rounds.push(figures(&ours, many).context("isopod-fs")?);
        if let Some(other) = &other {
            their_rounds.push(figures(other, many).context("virtiofsd")?);
        }
    }
    ours.end()?;
    let theirs = other
        .map(|container| container.end().map(|()| their_rounds))
        .transpose()?;
    let ours = our_rounds;
    let row = |&(key, name, unit, more): &(&str, &str, &'static str, bool)| {
        let scale = if unit == "ms" { 0.001 } else { 1.0 };
        let of = |rounds: &[Value]| {
            let figures = rounds
                .iter()
                .filter_map(|round| round[key].as_f64())
                .collect();
            median(figures) * scale
        };
        let row = Row::new(name, unit, of(&ours));
        let goal = if more {
            Goal::NoLessThanOther
        } else {
            Goal::NoMoreThanOther
        };
        match &theirs {
            Some(theirs) => row.against("virtiofsd", of(theirs)).goal(goal),
            None => row,
        }
    };
    Ok(FIGURES.iter().map(row).collect())
}

/// A pod with a volume, whose container may empty the guest's page cache between writing and reading.
fn pod(bed: &Bed) -> Result<Container<'_>> {
    let volume = bed.volume()?;
    let cgroup = format!("/{}/files", bed.namespace);
    let mut spec = spec(&bed.rootfs()?, &cgroup, &["sleep", "100000"]);
    privilege(&mut spec, u64::MAX);
    let mount = json!({
        "destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "rw"],
    });
    spec["mounts"].as_array_mut().context("mounts")?.push(mount);
    bed.container().spec(&spec)?.start([])
}

/// One round.
fn figures(container: &Container<'_>, many_files: bool) -> Result<Value> {
    let mut all: Value =
        serde_json::from_str(&container.output([PATH, "io", "/data/file", "64"])?)?;
    anyhow::ensure!(
        all["cold"] == true,
        "the guest's page cache could not be emptied"
    );
    if !many_files {
        return Ok(all);
    }
    let files: Value = serde_json::from_str(&container.output([PATH, "files", "/data", "10000"])?)?;
    if let (Some(all), Some(files)) = (all.as_object_mut(), files.as_object()) {
        all.extend(files.clone());
    }
    Ok(all)
}
