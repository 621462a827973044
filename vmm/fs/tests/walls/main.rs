//! Tries to pass each wall of the file server from inside: this program starts itself, enters the
//! server's own jail, puts on its filter, and makes the calls that whoever has taken it over would make.
//!
//! Namespaces and mounts take root; without it there is nothing to see, and the tests say so.
#![forbid(unsafe_code)]

use std::{io, path::Path, process::ExitCode};

use isopod_fs::{filter, walls};
use isopod_jail::{
    attempts::{
        self, Attempt, Targets,
        jailed::{self, Ended, targets_here},
    },
    violation,
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

fn main() -> ExitCode {
    if let Some((targets, arguments)) = jailed::told() {
        inside(targets, &arguments);
        return ExitCode::SUCCESS;
    }
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED the walls of isopod-fs: namespaces take root");
    }
    let trials = [
        Trial::test("walls_hold_without_the_filter", walls_hold),
        Trial::test(
            "the_server_is_ended_at_each_attempt",
            each_attempt_is_deadly,
        ),
        Trial::test("the_server_may_work", work_is_no_violation),
    ];
    let trials = trials.map(|trial| trial.with_ignored_flag(!root));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

/// What the walls without the filter refuse. Files of the share may be made: what is tried are those
/// outside of it.
fn refused_by_walls(targets: Targets) -> Vec<Attempt> {
    let outside = |attempt: &Attempt| {
        attempt.refusals.contains(&libc::ENOENT) && !attempt.refusals.contains(&libc::EROFS)
    };
    let files = attempts::of_nobody(targets).into_iter().filter(outside);
    let host = attempts::at_the_host(targets).into_iter();
    let host = host.filter(|attempt| !attempt.refusals.is_empty());
    files.chain(host).collect()
}

/// What the filter forbids, whatever the arguments: files are opened in one way only.
fn forbidden(targets: Targets) -> Vec<Attempt> {
    let calls = [
        libc::SYS_open,
        libc::SYS_openat2,
        libc::SYS_execve,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_prlimit64,
    ];
    let files = attempts::of_nobody(targets).into_iter();
    let files = files.filter(|attempt| calls.contains(&attempt.number));
    let host = attempts::at_the_host(targets).into_iter();
    // Capabilities are laid down and taken up again; more than these the walls refuse.
    let host = host.filter(|attempt| attempt.number != libc::SYS_capset);
    files.chain(host).collect()
}

/// The jailed process: the shared directory, whether it puts on its filter, what to do.
fn inside(targets: Targets, arguments: &[String]) {
    let [directory, filtered, act] = arguments else {
        panic!("{arguments:?}");
    };
    walls::enter(Path::new(directory)).unwrap();
    violation::report("test: ".to_owned()).unwrap();
    if filtered == "filtered" {
        // As in the server, where threads stand before the filter: the C library prepares its signals
        // at the first one.
        std::thread::spawn(|| ()).join().unwrap();
        filter::install().unwrap();
    }
    println!("ready");
    match act.as_str() {
        "all" => jailed::make(&refused_by_walls(targets)),
        "work" => {
            std::fs::write("/file", "of the guest").unwrap();
            assert_eq!(std::fs::read("/file").unwrap(), b"of the guest");
            assert!(std::fs::read("/../file").is_ok(), "the root is the top");
            std::thread::spawn(|| ()).join().unwrap();
            println!("worked");
        }
        name => {
            let mut found = forbidden(targets).into_iter();
            let attempt = found.find(|attempt| attempt.name == name).unwrap();
            println!("{name}: {:?}", attempt.make());
        }
    }
}

/// Runs the process with a shared directory of its own, a mount that only its starter sees.
fn start(arguments: &[&str]) -> Result<Ended, Failed> {
    let directory = tempfile::tempdir()?;
    let path = directory.path();
    let text = path.to_str().ok_or("a path that is no text")?;
    let arguments = [&[text], arguments].concat();
    let none = None::<&str>;
    let ended = jailed::start(&arguments, || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let tmpfs = Some("tmpfs");
        mount(tmpfs, path, tmpfs, MsFlags::empty(), none).map_err(io::Error::from)
    })?;
    Ok(ended)
}

fn check(right: bool, told: impl FnOnce() -> String) -> Result<(), Failed> {
    if right { Ok(()) } else { Err(told().into()) }
}

fn walls_hold() -> Result<(), Failed> {
    let ended = start(&["bare", "all"])?;
    check(ended.status.success(), || format!("{ended:?}"))?;
    let made = refused_by_walls(targets_here());
    check(made.len() > 30, || format!("{} attempts", made.len()))?;
    let passed = ended.not_refused(&made);
    check(passed.is_empty(), || passed.join("\n"))
}

fn each_attempt_is_deadly() -> Result<(), Failed> {
    for attempt in forbidden(targets_here()) {
        let ended = start(&["filtered", attempt.name])?;
        let deadly = ended.for_attempt(&attempt, filter::NAME);
        check(deadly, || format!("{}: {ended:?}", attempt.name))?;
    }
    Ok(())
}

fn work_is_no_violation() -> Result<(), Failed> {
    let ended = start(&["filtered", "work"])?;
    let worked = ended.status.success() && ended.output == "ready\nworked\n";
    check(worked, || format!("{ended:?}"))
}
