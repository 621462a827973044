//! Tries to pass each wall of the monitor from inside: this program starts itself, enters the monitor's
//! own jail, puts on the filter of one kind of thread, and makes the calls that whoever has taken over
//! that thread would make.
//!
//! Namespaces take root; without it there is nothing to see, and the tests say so.
#![forbid(unsafe_code)]

mod inside;

use std::{
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    process::ExitCode,
};

use inside::Kind;
use isopod_jail::attempts::jailed::{self, Ended, targets_here};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    if let Some((targets, arguments)) = jailed::told() {
        inside::run(targets, &arguments);
        return ExitCode::SUCCESS;
    }
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED the walls of isopod-vmm: namespaces take root");
    }
    let mut trials = vec![
        Trial::test("walls_hold_without_the_filters", walls_hold),
        Trial::test("the_hosts_network_is_out_of_reach", network),
    ];
    for kind in Kind::all() {
        let name = format!("a_{}_thread_is_ended_at_each_attempt", named(kind));
        trials.push(Trial::test(name, move || each_attempt_is_deadly(kind)));
        let name = format!("a_{}_thread_may_work", named(kind));
        trials.push(Trial::test(name, move || work_is_no_violation(kind)));
    }
    let trials = trials
        .into_iter()
        .map(|trial| trial.with_ignored_flag(!root));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// In the name of a test.
fn named(kind: Kind) -> String {
    kind.name().replace([' ', '-'], "_")
}

fn start(arguments: &[&str]) -> Result<Ended, Failed> {
    Ok(jailed::start(arguments, || Ok(()))?)
}

fn check(right: bool, told: impl FnOnce() -> String) -> Result<(), Failed> {
    if right { Ok(()) } else { Err(told().into()) }
}

fn walls_hold() -> Result<(), Failed> {
    let ended = start(&["none", "all"])?;
    check(ended.status.success(), || format!("{ended:?}"))?;
    let made = inside::refused_by_walls(targets_here());
    check(made.len() > 40, || format!("{} attempts", made.len()))?;
    let passed = ended.not_refused(&made);
    check(passed.is_empty(), || passed.join("\n"))?;
    for fact in inside::FACTS {
        let seen = ended.output.lines().any(|line| line == *fact);
        check(seen, || format!("not {fact:?}: {}", ended.output))?;
    }
    Ok(())
}

fn network() -> Result<(), Failed> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let name = SocketAddr::from_abstract_name(format!("isopod-walls-{port}"))?;
    let _abstract = UnixListener::bind_addr(&name)?;
    let ended = start(&["none", "connect", &port])?;
    for refusal in ["TCP: refused", "abstract: refused"] {
        check(ended.output.contains(refusal), || format!("{ended:?}"))?;
    }
    Ok(())
}

fn each_attempt_is_deadly(kind: Kind) -> Result<(), Failed> {
    for attempt in inside::forbidden(kind, targets_here()) {
        let ended = start(&[kind.name(), attempt.name])?;
        let deadly = ended.for_attempt(&attempt, kind.name());
        check(deadly, || format!("{}: {ended:?}", attempt.name))?;
    }
    Ok(())
}

fn work_is_no_violation(kind: Kind) -> Result<(), Failed> {
    let ended = start(&[kind.name(), "work"])?;
    let worked = ended.status.success() && ended.output == "ready\nworked\n";
    check(worked, || format!("{ended:?}"))
}
