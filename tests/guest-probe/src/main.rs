//! The probe: a static program for containers that have no other.
//!
//! ```text
//! probe posix DIR          checks of DIR's file system, one JSON line each: {"check":..., "error":null}
//! probe entries DIR COUNT  checks a directory of COUNT empty files named by number
//! probe emit BYTES         the pattern on standard output
//! probe absorb             reads the pattern from standard input; prints how many bytes were right
//! probe files DIR COUNT    creates, stats and unlinks COUNT files; microseconds of each as JSON
//! probe io FILE MIB        sequential and random reads and writes; MiB/s as JSON
//! probe vsock PORT         serves measurements on a vsock port; see `vsock.rs`
//! probe eat                takes memory until it is killed
//! probe clock              nanoseconds since 1970
//! ```
//! Built by the test framework; imported by nothing.
#![forbid(unsafe_code)]

mod measure;
mod posix;
mod vsock;

use std::{env, io, path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[&str]) -> Result<bool> {
    match words {
        ["posix", dir] => return posix::all(Path::new(dir)),
        ["posix-child", rest @ ..] => return posix::child(rest),
        ["entries", dir, count] => posix::directories::large(Path::new(dir), count.parse()?)?,
        ["emit", count] => isopod_guest_probe::emit(&mut io::stdout().lock(), count.parse()?)?,
        ["absorb"] => match isopod_guest_probe::absorb(&mut io::stdin().lock())? {
            Ok(count) => println!("{count}"),
            Err(place) => bail!("byte {place} is wrong"),
        },
        ["files", dir, count] => println!("{}", measure::files(Path::new(dir), count.parse()?)?),
        ["io", file, mib] => println!("{}", measure::io(Path::new(file), mib.parse()?)?),
        ["vsock", port] => vsock::serve(port.parse()?)?,
        ["eat"] => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        ["clock"] => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            println!("{}", now.context("the clock is before 1970")?.as_nanos());
        }
        other => bail!("unknown arguments {other:?}"),
    }
    Ok(true)
}
