//! The machine monitor: one process per virtual machine.
//!
//! Place in the flow: the sandbox's `kvm` engine starts it with a configuration on standard input and
//! every descriptor it needs; `isopod-vmm run` starts it by hand. Imports `machine`, `devices`, `jail`,
//! `config`; nothing imports it.
#![forbid(unsafe_code)]

mod assembly;
mod by_hand;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs one virtual machine on KVM.
#[derive(Parser)]
#[command(name = "isopod-vmm", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(by_hand::Run),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run(run) => {
            tracing_subscriber::fmt()
                .with_writer(std::io::stderr)
                .init();
            by_hand::run(run)
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
