//! containerd-shim-isopod-v2: containerd's task service for one pod.
//!
//! Place in the flow: containerd runs `start` for every container; the first of a pod spawns the server,
//! which decodes containerd's types once and asks [`isopod_sandbox::Sandbox`]. `delete` cleans up after
//! a killed server. Nothing imports it.
//!
//! ```text
//! args -> bootstrap (start) | delete | server -> service -> tasks -> pod (the sandbox)
//!                                                   events <--+--> io
//! ```
//! The task's pid is the VM process's pid on the host; `Pids` answers the guest's.
#![forbid(unsafe_code)]

mod address;
mod args;
mod bootstrap;
mod bundle;
mod convert;
mod delete;
mod events;
mod info;
mod io;
mod logging;
mod options;
mod pod;
mod server;
mod service;
mod stats;
mod tasks;

use std::process::ExitCode;

use args::{Action, Args};

/// What containerd calls this runtime.
const RUNTIME: &str = "io.containerd.isopod.v2";

fn main() -> ExitCode {
    let result = Args::parse(std::env::args().skip(1))
        .map_err(anyhow::Error::from)
        .and_then(|args| match args.action {
            Action::Version => info::print_version(),
            Action::Info => info::print_info(),
            Action::Start => bootstrap::start(&args),
            Action::Delete => delete::delete(&args),
            Action::Serve => server::serve(&args),
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this text to the user.
            eprintln!("{RUNTIME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
