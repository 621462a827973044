//! The machine monitor: one process per virtual machine.
//!
//! Place in the flow: the sandbox's `kvm` engine starts it with a configuration on standard input and
//! every descriptor it needs; `isopod-vmm run` starts it by hand. Imports `machine`, `devices`, `jail`,
//! `config`; nothing imports it.
//!
//! | module | what |
//! |---|---|
//! | `process` | one monitor of a pod, from configuration to end |
//! | `claim` | inherited descriptors become the parts of a machine |
//! | `walls`, `filter` | the jail; system calls by kind of thread |
//! | `assembly` | parts become a machine with its devices |
//! | `slots` | back ends that come and go while it runs |
//! | `control` | the owner's requests |
//! | `by_hand` | `isopod-vmm run` |
#![forbid(unsafe_code)]

mod assembly;
mod by_hand;
mod claim;
mod control;
mod parts;
mod process;
mod slots;
mod snapshot;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs one virtual machine on KVM.
///
/// Without a command it is one process of a pod, started by the sandbox and not by hand: it reads a
/// MonitorConfig as JSON from standard input until end of file, takes the descriptors named there,
/// enters its jail and serves its control socket. It ends with 0 when the guest resets, the owner shuts it
/// down or is gone, with 1 on an error.
#[derive(Parser)]
#[command(name = "isopod-vmm", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<by_hand::Run>),
    /// Measure who runs a guest's kernel on this machine; prints JSON.
    Probe,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        None => process::run(),
        Some(Command::Probe) => by_hand::probe(),
        Some(Command::Run(run)) => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .init();
            by_hand::run(*run)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isopod-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
