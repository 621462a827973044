//! The monitor by itself, with kernels of a few instructions: from its start to the guest's first
//! instruction, what it takes of memory, and how long a machine takes to be saved and to go on.

mod kernel;
mod process;

use std::{fs::File, time::Instant};

use anyhow::{Context, Result};
use isopod_tests::{Bed, Machine, Need};

use self::process::{Monitor, StateFiles};
use crate::{
    start::median,
    table::{Goal, Row},
};

const ROUNDS: usize = 15;
/// Of a guest whose memory is looked at.
const MEMORY_MIB: u64 = 128;

pub fn measure(_bed: &Bed) -> Result<Vec<Row>> {
    let machine = Machine::find();
    if let Some(why) = machine.lacks(Need::Kvm) {
        anyhow::bail!("{why}");
    }
    let mut rows = starts(&machine)?;
    rows.push(overhead(&machine)?);
    for mib in [128, 512] {
        rows.extend(snapshot(&machine, mib)?);
    }
    rows.extend(linux(&machine)?);
    Ok(rows)
}

/// The guest's first act is to write to a port.
fn starts(machine: &Machine) -> Result<Vec<Row>> {
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let began = Instant::now();
        let mut monitor = Monitor::start(machine, kernel::speaking()?, MEMORY_MIB, None, None)?;
        let boot = monitor.boot()?;
        monitor.line()?;
        // The first fills caches.
        if round > 0 {
            wall.push(began.elapsed().as_secs_f64() * 1e3);
            cpu.push(boot.cpu_us as f64 / 1e3);
        }
    }
    Ok(vec![
        Row::new("start to first instruction", "ms", median(wall)),
        Row::new("  its processor time", "ms", median(cpu)).goal(Goal::AtMost(8.0)),
    ])
}

/// What the monitor keeps in memory that is not the guest's.
fn overhead(machine: &Machine) -> Result<Row> {
    let mut monitor = Monitor::start(machine, kernel::speaking()?, MEMORY_MIB, None, None)?;
    monitor.boot()?;
    monitor.line()?;
    let text = std::fs::read_to_string(format!("/proc/{}/smaps", monitor.pid()))?;
    let mib = resident_kib(&text, "memfd:guest-memory") as f64 / 1024.0;
    Ok(Row::new("monitor without its guest (RSS)", "MiB", mib).goal(Goal::AtMost(5.0)))
}

/// Of all mappings but those of `without`.
fn resident_kib(smaps: &str, without: &str) -> u64 {
    let mut counted = true;
    let mut sum = 0;
    for line in smaps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rest) if counted => {
                let number = rest.split_whitespace().next();
                sum += number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            }
            Some(_) => {}
            // A mapping's own line begins with its addresses.
            None if line.starts_with(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c)) => {
                counted = !line.contains(without);
            }
            None => {}
        }
    }
    sum
}

/// A guest that has touched its memory is saved, and goes on in another process.
fn snapshot(machine: &Machine, mib: u64) -> Result<Vec<Row>> {
    let files = StateFiles::new()?;
    let (mut saves, mut restores, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS / 3 {
        let code = kernel::touching(mib)?;
        let mut monitor = Monitor::start(machine, code, mib, None, Some(&files))?;
        monitor.boot()?;
        monitor.line()?;
        monitor.pause()?;
        let took = monitor.save()?.took_us as f64 / 1e3;
        if round > 0 {
            saves.push(took);
        }
    }
    for round in 0..=ROUNDS {
        let began = Instant::now();
        let mut monitor = Monitor::start(machine, kernel::speaking()?, mib, Some(&files), None)?;
        let boot = monitor.boot()?;
        monitor.line()?;
        if round > 0 {
            restores.push(began.elapsed().as_secs_f64() * 1e3);
            cpu.push(boot.cpu_us as f64 / 1e3);
        }
    }
    let restored = format!("restore {mib} MiB to next instruction");
    let processor = format!("  its processor time, {mib} MiB");
    Ok(vec![
        Row::new(&format!("save {mib} MiB"), "ms", median(saves)),
        Row::new(&restored, "ms", median(restores)).goal(Goal::AtMost(10.0)),
        Row::new(&processor, "ms", median(cpu)),
    ])
}

/// The guest's kernel from its entry until it looks for its first program.
fn linux(machine: &Machine) -> Result<Vec<Row>> {
    let kernel = File::open(&machine.kernel).context("open the guest kernel")?;
    let mut monitor = Monitor::start(machine, kernel, MEMORY_MIB, None, None)?;
    let began = Instant::now();
    monitor.boot()?;
    monitor.until("Requested init")?;
    let wall = began.elapsed().as_secs_f64();
    let cpu = processor_time(monitor.pid())?;
    let mut rows = vec![
        Row::new("guest kernel, entry to first program", "s", wall),
        Row::new("  the kernel's processor time", "s", cpu),
    ];
    // Where instructions are interpreted, each takes as long as any other.
    if let Some(speed) = machine.interprets_kernels()? {
        rows.push(Row::new(
            "  as instructions, about",
            "million",
            cpu * speed / 1e6,
        ));
    }
    Ok(rows)
}

/// Seconds of user, system and guest time.
fn processor_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a process's name")?;
    // utime and stime, fields 14 and 15, in hundredths; the name is the second field.
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}
