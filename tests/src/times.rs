//! Where the time of a run goes: what each case took, and how busy the processors were with it.
//!
//! A run that is slow because cases wait wants more of them side by side; one whose processors are full
//! wants less work. These lines tell which.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

/// How many cases are named.
const LONGEST: usize = 20;

/// What a run's cases took.
#[derive(Debug)]
pub(crate) struct Times {
    began: Instant,
    cases: Mutex<BTreeMap<String, Duration>>,
}

impl Times {
    /// The run begins.
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            cases: Mutex::default(),
        }
    }

    /// One case took so long, without what it waited for its turn.
    pub fn note(&self, name: &str, took: Duration) {
        let mut cases = self.cases.lock().unwrap_or_else(PoisonError::into_inner);
        cases.insert(name.to_owned(), took);
    }

    /// Seconds by case, for the summary.
    pub fn seconds(&self) -> BTreeMap<String, f64> {
        let cases = self.cases.lock().unwrap_or_else(PoisonError::into_inner);
        cases
            .iter()
            .map(|(name, took)| (name.clone(), took.as_secs_f64()))
            .collect()
    }

    /// The longest cases, and the whole.
    pub fn report(&self) -> String {
        let cases = self.cases.lock().unwrap_or_else(PoisonError::into_inner);
        let mut longest: Vec<_> = cases.iter().collect();
        longest.sort_by_key(|(_, took)| std::cmp::Reverse(**took));
        let mut report = String::new();
        for (name, took) in longest.into_iter().take(LONGEST) {
            report.push_str(&format!("{:8.1} s  {name}\n", took.as_secs_f64()));
        }
        let whole: f64 = cases.values().map(Duration::as_secs_f64).sum();
        report.push_str(&format!(
            "{:8.1} s of {} cases in {:.1} s; programs used {:.1} s of processors\n",
            whole,
            cases.len(),
            self.began.elapsed().as_secs_f64(),
            used().as_secs_f64(),
        ));
        report
    }
}

/// Processor time of every program that this process has started and waited for, and of theirs: what a bed
/// kills at its end is missing.
fn used() -> Duration {
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or(Duration::ZERO, |usage| {
        let micros = (usage.user_time() + usage.system_time()).num_microseconds();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_comes_first() {
        let times = Times::begin();
        for (name, seconds) in [("a", 2), ("b", 30), ("c", 1)] {
            times.note(name, Duration::from_secs(seconds));
        }
        let report = times.report();
        let names: Vec<_> = report
            .lines()
            .filter_map(|line| line.split_once(" s  "))
            .map(|(_, name)| name)
            .collect();
        assert_eq!(names, ["b", "a", "c"]);
        assert!(report.contains("33.0 s of 3 cases"), "{report}");
        assert_eq!(times.seconds()["b"], 30.0);
    }
}
