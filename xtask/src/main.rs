//! House rules as code, and development commands: `cargo xtask help`.
//!
//! Place in the flow: none of the product's. Nothing imports it; `make` and CI call it.
#![forbid(unsafe_code)]

mod rules;
mod suite;
mod tree;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
Development commands of isopod.

  cargo xtask rules             check the house rules: layering, unsafe, file size, names, licences
  cargo xtask test [ARGS...]    run the unit tests and the end-to-end suites, ending in
                                `N passed, N failed, N skipped`; ARGS filter the end-to-end tests
                                by name; --unit or --e2e runs only that half, --no-run only
                                builds them
  cargo xtask help              this text

Usually called through make: `make lint`, `make test`.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one command; false when it found something wrong and has said so.
fn run(arguments: &[String]) -> Result<bool> {
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", arguments),
    };
    match command {
        "rules" => rules::check(&tree::Tree::load()?),
        "test" => suite::run(rest),
        "help" | "--help" | "-h" => {
            println!("{HELP}");
            Ok(true)
        }
        other => bail!("unknown command `{other}`; `cargo xtask help` lists them"),
    }
}
