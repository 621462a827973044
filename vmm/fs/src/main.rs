//! The program: reads its configuration, puts up its walls, serves until its front end or its owner
//! is gone. See the library's `lib.rs` for the flow.
#![forbid(unsafe_code)]

use std::{io::Read, process::ExitCode};

use anyhow::Context;
use isopod_config::FileServerConfig;

const HELP: &str = "\
isopod-fs serves a pod's shared directory (virtio-fs) and its vsock over vhost-user.

It is started by the sandbox, not by hand: it reads a FileServerConfig as JSON from standard input
until end of file, takes the descriptors named there, enters its jail, writes `ready` to the ready
descriptor and serves until the front end disconnects (exit 0), the lifeline closes (exit 0) or an
error occurs (exit 1).

Options:
  --version  print the version
  --help     print this
";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--version") => {
            println!("isopod-fs {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--help") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            eprintln!("isopod-fs: unknown argument {other:?}; see --help");
            return ExitCode::from(2);
        }
    }
    let config = match read_config() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("isopod-fs: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    isopod_jail::log::start("isopod-fs", &config.name);
    match isopod_fs::process::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{:#}", anyhow::Error::new(error));
            ExitCode::FAILURE
        }
    }
}

fn read_config() -> anyhow::Result<FileServerConfig> {
    let mut json = Vec::new();
    // A configuration is a few hundred bytes; a caller that sends more is not the sandbox.
    std::io::stdin()
        .lock()
        .take(64 << 10)
        .read_to_end(&mut json)
        .context("read stdin")?;
    serde_json::from_slice(&json).context("understand the configuration on stdin")
}
