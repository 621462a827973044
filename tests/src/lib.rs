//! The framework of the end-to-end suites and of the benchmarks.
//!
//! ```text
//! suite (outer process, any user) -- one case --> bed: own mount, pid, network namespaces
//!    needs, time limits, totals                    |-- PID 1: reaps, ends when the outer process does
//!                                                  `-- body: containerd, image, the case, leftovers
//! ```
//! Every case gets a containerd, a `/run`, a disk and a pid namespace of its own, so that cases run in
//! parallel, see exactly what they leave behind, and vanish whole when their time is over or the test
//! process is killed. Cases that run once more on the monitor share a bed and a pod: `smoke`. Imported by the suites in `e2e/` and the benchmark in `perf/`; imports no sibling.
#![forbid(unsafe_code)]

pub mod bed;
pub mod case;
pub mod container;
pub mod containerd;
pub mod events;
pub mod file_server;
pub mod image;
pub mod leftovers;
pub mod machine;
pub mod probe;
pub mod process;
pub mod procfs;
pub mod settings;
pub mod shim;
pub(crate) mod smoke;
pub mod spec;
pub mod suite;
pub mod terminal;
pub(crate) mod times;

pub use bed::{Bed, Runtime};
pub use case::Case;
pub use container::{Container, Run};
pub use machine::{Machine, Need};
pub use process::{Background, Finished};
pub use suite::Suite;

/// Fails the case with both values when they differ.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr $(,)?) => {
        $crate::check_eq!($left, $right, "{}", stringify!($left))
    };
    ($left:expr, $right:expr, $($context:tt)+) => {
        match (&$left, &$right) {
            (left, right) => if left != right {
                ::anyhow::bail!(
                    "{}:\n  got      {:?}\n  expected {:?}", format!($($context)+), left, right
                );
            }
        }
    };
}

/// Fails the case unless `text` contains `part`.
#[macro_export]
macro_rules! check_contains {
    ($text:expr, $part:expr $(,)?) => {
        match (&$text, &$part) {
            (text, part) => {
                if !text.contains(part) {
                    ::anyhow::bail!("{} lacks {:?}:\n{}", stringify!($text), part, text);
                }
            }
        }
    };
}
