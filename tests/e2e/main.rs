//! The end-to-end suites: what a user of containerd sees. Each case that runc can run is proven on runc.
#![forbid(unsafe_code)]

mod abuse;
mod boot_deaths;
mod boot_faults;
mod death;
mod debug;
mod escape;
mod exit_codes;
mod filesystem;
mod growth;
mod guest;
mod identity;
mod limits;
mod lives;
mod pods;
mod posix;
mod selftest;
mod streams;
mod survival;
mod tasks;
mod terminal;
mod volume;
mod withstand;

use std::process::ExitCode;

use isopod_tests::Suite;

const SUITE: Suite = Suite {
    name: "e2e",
    groups: &[
        ("abuse", abuse::CASES),
        ("escape", escape::CASES),
        ("exit_codes", exit_codes::CASES),
        ("filesystem", filesystem::CASES),
        ("limits", limits::CASES),
        ("lives", lives::CASES),
        ("tasks", tasks::CASES),
        ("pods", pods::CASES),
        ("posix", posix::CASES),
        ("survival", survival::CASES),
        ("volume", volume::CASES),
        ("boot_faults", boot_faults::CASES),
        ("boot_deaths", boot_deaths::CASES),
        ("death", death::CASES),
        ("debug", debug::CASES),
        ("growth", growth::CASES),
        ("guest", guest::CASES),
        ("identity", identity::CASES),
        ("selftest", selftest::CASES),
        ("streams", streams::CASES),
        ("terminal", terminal::CASES),
        ("withstand", withstand::CASES),
    ],
};

fn main() -> ExitCode {
    SUITE.main()
}
