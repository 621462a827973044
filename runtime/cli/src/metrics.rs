//! `isopod metrics`: what a pod's monitor has counted.

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::Context;
use isopod_sandbox::metrics::Metrics;

use crate::{list::Name, look::Look};

/// Prints them, a line each, or as JSON.
pub fn run(config: Option<&Path>, pod: &str, json: bool) -> anyhow::Result<ExitCode> {
    let Look {
        settings,
        name: Name { namespace, id },
        runtime,
    } = Look::at(config, pod)?;
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
