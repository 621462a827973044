//! isopod: the operator's command line.
//!
//! Place in the flow: beside it. `check` gathers what this machine is ([`machine`], [`gather`]), judges
//! it purely ([`check`]), and prints the verdict; `list` shows the pods that run, `debug` what is in one,
//! `metrics` what its monitor has counted.
//! Nothing imports it.
#![forbid(unsafe_code)]

mod check;
mod debug;
mod gather;
mod list;
mod look;
mod machine;
mod metrics;
mod processes;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Runs every Kubernetes pod in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "isopod", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether this machine can run pods, and what to do where it cannot.
    ///
    /// The exit code is 0 when it can and 1 when it cannot.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The settings to check, instead of /etc/isopod/isopod.toml.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// List the pods that run here: their processes and their memory.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look into a running pod's guest: processes, mounts, control groups, the kernel's messages.
    ///
    /// Without a question it reads questions from standard input, line by line; `help` tells what can be
    /// asked. Nothing that can be asked changes anything. Only root may ask, and the pod must have started
    /// with `debug.console = true` in its settings.
    Debug {
        /// The settings that say where pods are, instead of /etc/isopod/isopod.toml.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The pod, as `isopod list` names it.
        #[arg(value_name = "[NAMESPACE/]POD")]
        pod: String,
        /// A question, such as `processes`.
        #[arg(trailing_var_arg = true)]
        question: Vec<String>,
    },
    /// Tell what a running pod's monitor has counted: requests, interrupts, what broke a rule, by device.
    ///
    /// Where `isopod-vmm` runs the machine; QEMU counts nothing. Only root may ask.
    Metrics {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// The settings that say where pods are, instead of /etc/isopod/isopod.toml.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The pod, as `isopod list` names it.
        #[arg(value_name = "[NAMESPACE/]POD")]
        pod: String,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Check { json, config } => check::run(config.as_deref(), json),
        Command::List { json } => list::run(json),
        Command::Debug {
            config,
            pod,
            question,
        } => debug::run(config.as_deref(), &pod, &question),
        Command::Metrics { json, config, pod } => metrics::run(config.as_deref(), &pod, json),
    };
    result.unwrap_or_else(|error| {
        eprintln!("isopod: {error:#}");
        ExitCode::FAILURE
    })
}
