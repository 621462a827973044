//! Long streams: every byte, in order, and no process that grows with them.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use isopod_tests::{Bed, Case, Runtime, check_eq, probe::PATH, procfs};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("256_mb_through_stdout", stdout)
        .with_probe()
        .alone()
        .within(300),
    Case::both("64_mb_through_stdin", stdin)
        .with_probe()
        .alone()
        .within(300),
    Case::both("a_slow_reader_holds_the_writer_back", back_pressure)
        .with_probe()
        .within(180),
];

/// How much a process may grow while a stream of any length passes through it.
const GROWTH_KIB: u64 = 16 * 1024;

/// Samples the private memory of the pod's host processes; answers the most that each had beyond its
/// first sample, by name.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(String, u64, u64)>>,
}

impl Sampler {
    fn start(bed: &Bed) -> Result<Self> {
        let names: &[&str] = match bed.runtime {
            Runtime::Runc => &["containerd-shim-runc-v2"],
            Runtime::Isopod => &["containerd-shim-isopod-v2", "isopod-fs"],
        };
        let mut watched = Vec::new();
        for name in names {
            for process in procfs::named(name)? {
                let first = procfs::anonymous_kib(process.pid)?;
                watched.push(((*name).to_owned(), process.pid, first, first));
            }
        }
        ensure!(
            watched.len() >= names.len(),
            "found only {watched:?} of {names:?}"
        );
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (_, pid, _, most) in &mut watched {
                    *most = procfs::anonymous_kib(*pid).unwrap_or(0).max(*most);
                }
                thread::sleep(Duration::from_millis(20));
            }
            watched
                .into_iter()
                .map(|(name, _, first, most)| (name, first, most))
                .collect()
        });
        Ok(Self { stop, thread })
    }

    fn assert_flat(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let grown = self
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the sampler panicked"))?;
        for (name, first, most) in grown {
            eprintln!("{name}: {first} KiB before, {most} KiB at most");
            ensure!(
                most - first <= GROWTH_KIB,
                "{name} grew from {first} to {most} KiB"
            );
        }
        Ok(())
    }
}

fn stdout(bed: &Bed) -> Result<()> {
    const BYTES: u64 = 256 << 20;
    let container = bed.container().sleeping()?;
    // Once in small, so that what is allocated once is there.
    container.exec([PATH, "emit", "1000000"])?.ok()?;
    let sampler = Sampler::start(bed)?;
    let mut child = container
        .exec_command(&[], [PATH, "emit", &BYTES.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdout.take().context("a pipe")?;
    check_eq!(isopod_guest_probe::absorb(&mut pipe)?, Ok(BYTES));
    ensure!(child.wait()?.success(), "the exec failed");
    sampler.assert_flat()?;
    container.end()
}

fn stdin(bed: &Bed) -> Result<()> {
    const BYTES: u64 = 64 << 20;
    let container = bed.container().sleeping()?;
    container.exec_reading("warm up", ["cat"])?.ok()?;
    let sampler = Sampler::start(bed)?;
    let mut child = container
        .exec_command(&[], [PATH, "absorb"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdin.take().context("a pipe")?;
    isopod_guest_probe::emit(&mut pipe, BYTES)?;
    drop(pipe);
    let output = child.wait_with_output()?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    check_eq!(out.trim(), BYTES.to_string(), "{err}");
    sampler.assert_flat()?;
    container.end()
}

fn back_pressure(bed: &Bed) -> Result<()> {
    // Nobody reads for a while: the writer must stop, nothing may buffer the stream, and afterwards
    // every byte must come.
    const BYTES: u64 = 64 << 20;
    let container = bed.container().sleeping()?;
    container.exec([PATH, "emit", "1000000"])?.ok()?;
    let sampler = Sampler::start(bed)?;
    let script = format!("{PATH} emit {BYTES}; echo done > /tmp/done");
    let mut child = container
        .exec_command(&[], ["sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    thread::sleep(Duration::from_secs(4));
    container
        .exec(["sh", "-c", "! test -e /tmp/done"])?
        .ok()
        .context("the writer was not held back")?;
    let mut pipe = child.stdout.take().context("a pipe")?;
    check_eq!(isopod_guest_probe::absorb(&mut pipe)?, Ok(BYTES));
    ensure!(child.wait()?.success(), "the exec failed");
    sampler.assert_flat()?;
    container.end()
}
