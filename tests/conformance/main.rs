//! Conformance: one table of OCI bundles and expectations, run on runc and on isopod.
//!
//! A case is data (`cases/*.toml`: a patch of the specification, a command, what it must print or how it
//! must fail), so that a new one is five lines; `table.rs` says what its fields mean. The cases of one
//! file share a bed and a pod, and are separate containers in it. Where the runtimes are to differ, the
//! case names a section of `docs/conformance.md` that says why.
#![forbid(unsafe_code)]

mod bundle;
mod calls;
mod dropped;
mod fields;
mod subject;
mod table;
mod types;

use std::process::ExitCode;

use anyhow::Result;
use isopod_tests::{
    Bed, Case, Suite,
    bed::{Role, role},
};

/// Declares a group: a function for the suite, and its table.
macro_rules! groups {
    ($($name:ident),* $(,)?) => {
        $(fn $name(bed: &Bed) -> Result<()> {
            table::run(bed, stringify!($name), include_str!(concat!("cases/", stringify!($name), ".toml")))
        })*
        /// Every group's name and text.
        const TABLES: &[(&str, &str)] =
            &[$((stringify!($name), include_str!(concat!("cases/", stringify!($name), ".toml")))),*];
        const CASES: &[Case] = &[
            Case::both("calls", task_calls).within(600),
            Case::both("dropped", dropped_calls).within(600),
            Case::isopod("types", types::run).within(600),
            $(Case::both(stringify!($name), $name).within(600).under_both_containerds()),*
        ];
    };
}

groups![process, mounts, resources, namespaces, fields];

/// The Task API's table.
const CALLS: &str = include_str!("cases/calls.toml");

fn task_calls(bed: &Bed) -> Result<()> {
    calls::run(bed, CALLS)
}

fn dropped_calls(bed: &Bed) -> Result<()> {
    dropped::run(bed, CALLS)
}

const SUITE: Suite = Suite {
    name: "conformance",
    groups: &[("conformance", CASES)],
};

fn main() -> ExitCode {
    if matches!(role(), Role::Suite) {
        match table::check(TABLES, CALLS, include_str!("../../docs/conformance.md")) {
            Ok(summary) => println!("{summary}"),
            Err(error) => {
                eprintln!("the table is wrong: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    SUITE.main()
}
