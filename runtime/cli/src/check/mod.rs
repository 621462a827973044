//! `isopod check`.

mod judge;
mod report;

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::Context;
use serde::Serialize;

use crate::gather;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Pods run, but read this.
    Warn,
    /// Pods cannot run.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, in a few words; stable, for programs.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when all is well.
    pub remedy: String,
}

/// The engine that pods get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Engine {
    /// "qemu" or "kvm".
    pub name: &'static str,
    /// What executes guest code: "software" or "kvm".
    pub cpu: &'static str,
    /// The reason.
    pub why: String,
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether this machine can run pods.
    pub can_run_pods: bool,
    /// On which engine; none when the settings or the machine allow none.
    pub engine: Option<Engine>,
    /// In the order in which they should be mended.
    pub checks: Vec<Check>,
}

/// Checks this machine and prints the report.
pub fn run(config: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let report = judge::judge(&gather::machine(config));
    let text = if json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report::text(&report)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("printing the report")?;
    Ok(if report.can_run_pods {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
