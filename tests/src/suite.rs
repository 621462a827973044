//! Runs cases, each in a bed of its own, and adds up their outcomes.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    process::ExitCode,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde::Serialize;

use crate::{
    Bed, Finished, Machine,
    bed::{self, Role},
    case::{Case, Variant},
    image::Files,
    leftovers::Snapshot,
    probe, process,
    smoke::{self, Outcomes},
    times::Times,
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
    /// What each case took.
    seconds: BTreeMap<String, f64>,
}

/// What all cases of a run share.
struct Shared {
    machine: Machine,
    /// Cases that run alone take it for writing.
    turn: RwLock<()>,
    beds: AtomicU32,
    times: Times,
    failed: Mutex<Vec<String>>,
    skipped: Mutex<Vec<String>>,
    unsteady: Mutex<Vec<String>>,
    /// Cases that share one pod, as far as they are wanted.
    smoke: Vec<String>,
    smoked: OnceLock<Outcomes>,
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
            // A case waits for half of its time or more: for containerd, for a boot, for its own clock.
            arguments.test_threads = Some((cores + cores.div_ceil(2)).clamp(2, 8));
        }
        let machine = Machine::find();
        let wanted = |Found {
                          name,
                          case,
                          variant,
                      }: &Found| {
            variant.smoke
                && selects(&arguments, name)
                && case.obstacle(&machine, *variant).is_none()
        };
        let smoke = self.all().filter(wanted).map(|found| found.name).collect();
        let shared = Arc::new(Shared {
            machine,
            turn: RwLock::new(()),
            beds: AtomicU32::new(0),
            times: Times::begin(),
            failed: Mutex::default(),
            skipped: Mutex::default(),
            unsteady: Mutex::default(),
            smoke,
            smoked: OnceLock::new(),
        });
        let trial = |Found {
                         name,
                         case,
                         variant,
                     }: Found| {
            let (shared, told) = (Arc::clone(&shared), name.clone());
            Trial::ignorable_test(name, move || shared.trial(&case, variant, &told))
        };
        let trials = self.all().map(trial).collect();
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
            seconds: shared.times.seconds(),
        };
        println!("{}", shared.times.report());
        for name in &summary.unsteady_cases {
            println!("unsteady: {name} passed at the second try only");
        }
        if let Some(path) = env::var_os("ISOPOD_TEST_SUMMARY") {
            fs::write(&path, serde_json::to_vec_pretty(&summary)?)
                .with_context(|| format!("write {path:?}"))?;
        }
        Ok(conclusion.exit_code())
    }

    /// Every case, on everything that it runs on.
    fn all(&self) -> impl Iterator<Item = Found> {
        let variants = |group: &'static str, case: &'static Case| {
            case.variants(monitored(group)).map(move |variant| Found {
                name: case.full_name(group, variant),
                case: *case,
                variant,
            })
        };
        let groups = self.groups.iter();
        groups.flat_map(move |(group, cases)| {
            cases.iter().flat_map(move |case| variants(group, case))
        })
    }

    /// Runs one case, or several that share a pod, a line for the name of each: this process is the body
    /// of a bed.
    fn body(&self, names: &str) -> Result<()> {
        let named = |name| self.all().find(|found| found.name == name);
        let found: Option<Vec<Found>> = names.lines().map(named).collect();
        let found = found.context("no such case")?;
        let first = found.first().context("no case")?;
        let mut machine = Machine::find();
        if first.variant.newer {
            machine.containerd_dir = Some(machine.newer_containerd_dir.clone());
        }
        let mut files = Files::new();
        if found.iter().any(|found| found.case.probe) {
            files.insert(
                probe::PATH.to_owned(),
                probe::bytes(&probe::build(&machine)?)?,
            );
        }
        let bed = Bed::enter(machine, first.variant.runtime, &files).context("make the bed")?;
        let outcome = if first.variant.smoke {
            watch(&bed, patiently(smoke::limit(found.len())));
            let cases = found.into_iter().map(|found| (found.name, found.case));
            smoke::run(&bed, cases.collect())
        } else {
            watch(&bed, patiently(first.case.limit));
            process::be_patient(patience());
            let before = Snapshot::take(&bed)?;
            (first.case.body)(&bed).and_then(|()| before.assert_restored(&bed))
        };
        outcome.map_err(|error| anyhow::anyhow!("{error:#}\n{}", tail(&bed.log())))
    }
}

/// One case on one of the things that it runs on.
struct Found {
    name: String,
    case: Case,
    variant: Variant,
}

/// Whether the arguments ask for a test of this name, as `libtest_mimic` decides it.
fn selects(arguments: &Arguments, name: &str) -> bool {
    let fits = |filter: &String| match arguments.exact {
        true => name == filter,
        false => name.contains(filter.as_str()),
    };
    arguments.filter.as_ref().is_none_or(fits) && !arguments.skip.iter().any(fits)
}

/// `ISOPOD_TEST_MONITOR` names groups, with commas between, all of whose cases run on the monitor too, in the
/// pod that they share: too many for every day where KVM interprets kernels. A case that needs a pod of its own
/// fails there.
fn monitored(group: &str) -> bool {
    env::var("ISOPOD_TEST_MONITOR").is_ok_and(|groups| groups.split(',').any(|name| name == group))
}

/// Ends this process, with what could explain it, when its time is over.
fn watch(bed: &Bed, limit: Duration) {
    let watched = bed.containerd().log();
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
}

/// `ISOPOD_TEST_PATIENCE` multiplies all limits, for slow machines.
fn patiently(limit: Duration) -> Duration {
    limit.saturating_mul(patience())
}

fn patience() -> u32 {
    let patience = env::var("ISOPOD_TEST_PATIENCE").ok();
    patience.and_then(|text| text.parse().ok()).unwrap_or(1)
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
        let outcome = if variant.smoke {
            let outcomes = self.smoked.get_or_init(|| self.smoke());
            smoke::outcome(outcomes, name)
        } else if case.alone {
            let _turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
            self.in_bed(case, name)
        } else {
            let _turn = self.turn.read().unwrap_or_else(PoisonError::into_inner);
            self.in_bed(case, name)
        };
        let outcome = match outcome {
            // They have had their second try.
            Err(error) if !variant.smoke => self.again(case, name, &error),
            outcome => outcome,
        };
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
        let began = Instant::now();
        let finished = self.bed(name, patiently(case.limit));
        self.times.note(name, began.elapsed());
        let finished = finished?;
        if finished.code != 0 {
            anyhow::bail!("{}{}", finished.out(), finished.err());
        }
        // What a case measured on its way, for whoever wants to see it.
        if env::var_os("ISOPOD_TEST_SHOW").is_some() {
            eprint!("{name}:\n{}", finished.err());
        }
        Ok(())
    }

    fn bed(&self, names: &str, limit: Duration) -> Result<Finished> {
        let number = self.beds.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("isopod-test-{}-{number}", std::process::id());
        bed::make(names, &namespace, limit + Duration::from_secs(20))
    }

    /// All cases that share a pod, nothing beside it: an interpreted kernel needs all processors there are.
    fn smoke(&self) -> Outcomes {
        let _turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let (outcomes, unsteady) = smoke::with_second_try(&self.smoke, |names| {
            self.bed(&names.join("\n"), patiently(smoke::limit(names.len())))
        });
        self.times.note(smoke::POD, began.elapsed());
        for name in unsteady {
            push(&self.unsteady, name);
        }
        outcomes
    }
}

fn push(names: &Mutex<Vec<String>>, name: String) {
    names
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(name);
}
