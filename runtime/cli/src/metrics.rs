//! `isopod metrics`: what a pod's monitor has counted.

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::{Context, ensure};
use isopod_sandbox::metrics::Metrics;
use isopod_settings::Settings;

use crate::list::{self, Name};

/// Prints them, a line each, or as JSON.
pub fn run(config: Option<&Path>, pod: &str, json: bool) -> anyhow::Result<ExitCode> {
    let root = rustix::process::geteuid().is_root();
    ensure!(root, "only root may look into pods");
    let settings = Settings::load(config)?;
    let Name { namespace, id } = list::find(list::names(), pod)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let metrics = runtime.block_on(Metrics::of_pod(&settings, &namespace, &id))?;
    let text = if json {
        serde_json::to_string_pretty(&metrics)? + "\n"
    } else {
        metrics.lines().join("\n") + "\n"
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("print the metrics")?;
    Ok(ExitCode::SUCCESS)
}
