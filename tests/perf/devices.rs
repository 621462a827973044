//! `blk` and `net` of the monitor by themselves, with a driver in the same process: the benchmark of their
//! own crate, which is built when it is asked for, beside what this host does without them.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use isopod_tests::{Bed, machine::workspace, process};
use serde::Deserialize;
use serde_json::Value;

use crate::table::Row;

const TARGET: &str = "rates";
/// A dozen figures of a second each; the builder's patience is its own.
const LIMIT: Duration = Duration::from_secs(120);

/// A line that the benchmark prints.
#[derive(Deserialize)]
struct Figure {
    name: String,
    unit: String,
    isopod: f64,
    other: Other,
}

#[derive(Deserialize)]
struct Other {
    name: String,
    figure: f64,
}

pub fn measure(_bed: &Bed) -> Result<Vec<Row>> {
    let mut command = Command::new(build()?);
    command.args(["--bench", "--json"]);
    let told = process::run(&mut command, None, LIMIT)?.ok()?.out();
    let row = |line: &str| {
        let figure: Figure = serde_json::from_str(line)?;
        let row = Row::new(&figure.name, leak(figure.unit), figure.isopod);
        Ok(row.against(leak(figure.other.name), figure.other.figure))
    };
    told.lines().map(row).collect()
}

/// Rows name units and peers for as long as the program runs, which is not long.
fn leak(text: String) -> &'static str {
    text.leak()
}

/// Builds the benchmark, or finds it built; its program.
pub fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["bench", "--quiet", "--locked", "--no-run"])
        .args(["--package", "isopod-devices", "--bench", TARGET])
        .args(["--message-format", "json"])
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    anyhow::ensure!(built.status.success(), "cargo bench: {}", built.status);
    let messages = String::from_utf8_lossy(&built.stdout);
    let program = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let ours = message["target"]["name"] == TARGET;
        let program = message["executable"].as_str().filter(|_| ours)?;
        Some(PathBuf::from(program))
    });
    program.context("cargo bench tells of no program")
}
