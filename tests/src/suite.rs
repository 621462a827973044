//! Runs cases, each in a bed of its own, and adds up their outcomes.

use std::{
    env, fs,
    io::Write,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde::Serialize;

use crate::{
    Bed, Machine,
    bed::{self, Role},
    case::{Case, Variant},
    image::Files,
    leftovers::Snapshot,
    probe,
};

/// The groups of cases of one test program.
pub struct Suite {
    /// For the summary.
    pub name: &'static str,
    /// A group's name and its cases.
    pub groups: &'static [(&'static str, &'static [Case])],
}

/// What `ISOPOD_TEST_SUMMARY` names is overwritten with this, as JSON.
#[derive(Debug, Serialize)]
struct Summary {
    suite: &'static str,
    passed: u64,
    failed: u64,
    skipped: u64,
    not_selected: u64,
    failed_cases: Vec<String>,
    skipped_cases: Vec<String>,
    /// Passed at the second try only.
    unsteady_cases: Vec<String>,
}

/// What all cases of a run share.
struct Shared {
    machine: Machine,
    /// Cases that run alone take it for writing.
    turn: RwLock<()>,
    beds: AtomicU32,
    failed: Mutex<Vec<String>>,
    skipped: Mutex<Vec<String>>,
    unsteady: Mutex<Vec<String>>,
}

impl Suite {
    /// The whole of `main`: plays the role that the environment says.
    pub fn main(&self) -> ExitCode {
        let outcome = match bed::role() {
            Role::Suite => self.run(),
            Role::Init => bed::init().map(|code| ExitCode::from(u8::try_from(code).unwrap_or(1))),
            Role::Body(name) => self.body(&name).map(|()| ExitCode::SUCCESS),
        };
        outcome.unwrap_or_else(|error| {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        })
    }

    fn run(&self) -> Result<ExitCode> {
        let mut arguments = Arguments::from_args();
        if arguments.test_threads.is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            arguments.test_threads = Some(cores.clamp(2, 8));
        }
        let shared = Arc::new(Shared {
            machine: Machine::find(),
            turn: RwLock::new(()),
            beds: AtomicU32::new(0),
            failed: Mutex::default(),
            skipped: Mutex::default(),
            unsteady: Mutex::default(),
        });
        let mut trials = Vec::new();
        for (group, cases) in self.groups {
            for case in *cases {
                for variant in case.variants() {
                    let (case, shared) = (*case, Arc::clone(&shared));
                    let name = case.full_name(group, variant);
                    let told = name.clone();
                    trials.push(Trial::ignorable_test(name, move || {
                        shared.trial(&case, variant, &told)
                    }));
                }
            }
        }
        let conclusion = libtest_mimic::run(&arguments, trials);
        let take = |names: &Mutex<Vec<String>>| {
            std::mem::take(&mut *names.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let summary = Summary {
            suite: self.name,
            passed: conclusion.num_passed,
            failed: conclusion.num_failed,
            skipped: conclusion.num_ignored,
            not_selected: conclusion.num_filtered_out,
            failed_cases: take(&shared.failed),
            skipped_cases: take(&shared.skipped),
            unsteady_cases: take(&shared.unsteady),
        };
        for name in &summary.unsteady_cases {
            println!("unsteady: {name} passed at the second try only");
        }
        if let Some(path) = env::var_os("ISOPOD_TEST_SUMMARY") {
            fs::write(&path, serde_json::to_vec_pretty(&summary)?)
                .with_context(|| format!("write {path:?}"))?;
        }
        Ok(conclusion.exit_code())
    }

    /// Runs one case: this process is the body of a bed.
    fn body(&self, name: &str) -> Result<()> {
        let mut found = self.groups.iter().flat_map(|(group, cases)| {
            let named = move |case: &'static Case| {
                case.variants()
                    .map(move |variant| (case.full_name(group, variant), case, variant))
            };
            cases.iter().flat_map(named)
        });
        let (_, case, variant) = found
            .find(|(full, ..)| full == name)
            .context("no such case")?;
        let mut machine = Machine::find();
        if variant.newer {
            machine.containerd_dir = Some(machine.newer_containerd_dir.clone());
        }
        let mut files = Files::new();
        if case.probe {
            files.insert(
                probe::PATH.to_owned(),
                probe::bytes(&probe::build(&machine)?)?,
            );
        }
        let bed = Bed::enter(machine, variant.runtime, &files).context("make the bed")?;
        let before = Snapshot::take(&bed)?;
        let watched = bed.containerd().log();
        let limit = limit_of(case);
        std::thread::spawn(move || {
            std::thread::sleep(limit);
            let log = fs::read_to_string(watched).unwrap_or_default();
            let processes = crate::procfs::processes().unwrap_or_default();
            let processes: Vec<String> = processes
                .iter()
                .map(|p| format!("{} {} {}", p.pid, p.state, p.command_line))
                .collect();
            eprintln!(
                "not done after {limit:?}\nprocesses:\n{}\n{}",
                processes.join("\n"),
                tail(&log)
            );
            std::process::exit(1);
        });
        let outcome = (case.body)(&bed).and_then(|()| before.assert_restored(&bed));
        outcome.map_err(|error| anyhow::anyhow!("{error:#}\n{}", tail(&bed.log())))
    }
}

/// `ISOPOD_TEST_PATIENCE` multiplies the limits, for slow machines.
fn limit_of(case: &Case) -> Duration {
    let patience = env::var("ISOPOD_TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    case.limit * patience.unwrap_or(1)
}

/// The end of containerd's log, for a case that failed.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| !line.contains("loading plugin"))
        .collect();
    let from = lines.len().saturating_sub(40);
    format!(
        "the last lines of the log:\n{}",
        lines.get(from..).unwrap_or_default().join("\n")
    )
}

impl Shared {
    fn trial(&self, case: &Case, variant: Variant, name: &str) -> Result<Completion, Failed> {
        if let Some(why) = case.obstacle(&self.machine, variant) {
            push(&self.skipped, format!("{name}: {why}"));
            return Ok(Completion::ignored_with(why));
        }
        let outcome = if case.alone {
            let _turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
            self.in_bed(case, name)
        } else {
            let _turn = self.turn.read().unwrap_or_else(PoisonError::into_inner);
            self.in_bed(case, name)
        };
        let outcome = outcome.or_else(|error| self.again(case, name, &error));
        outcome.map(|()| Completion::Completed).map_err(|error| {
            push(&self.failed, name.to_owned());
            Failed::from(format!("{error:#}"))
        })
    }

    /// A second try, with nothing beside it: shared machines stall for seconds, and a real fault fails
    /// twice. The first failure is shown and listed all the same.
    fn again(&self, case: &Case, name: &str, error: &anyhow::Error) -> Result<()> {
        let _turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
        eprintln!("{name} failed and is tried once more, alone:\n{error:#}");
        self.in_bed(case, name)?;
        push(&self.unsteady, name.to_owned());
        Ok(())
    }

    fn in_bed(&self, case: &Case, name: &str) -> Result<()> {
        if case.probe {
            probe::build(&self.machine)?;
        }
        let number = self.beds.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("isopod-test-{}-{number}", std::process::id());
        let finished = bed::make(name, &namespace, limit_of(case) + Duration::from_secs(20))?;
        if finished.code != 0 {
            anyhow::bail!("{}{}", finished.out(), finished.err());
        }
        Ok(())
    }
}

fn push(names: &Mutex<Vec<String>>, name: String) {
    names
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(name);
}
