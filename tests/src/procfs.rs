//! Processes as /proc shows them. A bed has a pid namespace of its own: every process in it is ours.

use std::fs;

use anyhow::{Context, Result};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// The kernel's name for it (comm, at most 15 bytes).
    pub name: String,
    /// Its arguments, joined by spaces.
    pub command_line: String,
    /// R, S, D, Z, ...
    pub state: char,
}

/// Every process of the bed.
pub fn processes() -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        if let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            // It may be gone by now.
            all.extend(process(pid));
        }
    }
    Ok(all)
}

/// One process, when it exists.
pub fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once(" (")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command_line = String::from_utf8_lossy(&command_line)
        .replace('\0', " ")
        .trim()
        .to_owned();
    Some(Process {
        pid,
        parent,
        name: name.to_owned(),
        command_line,
        state,
    })
}

/// Processor time of a process and of all threads that it has had, in ticks of 10 ms.
pub fn ticks(pid: u32) -> Option<u64> {
    ticks_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The same of a line of `stat`, of a process or of one thread.
pub fn ticks_of(stat: &str) -> Option<u64> {
    // The name is in parentheses; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

/// Living processes whose program (the first argument's last part) has this name.
pub fn named(program: &str) -> Result<Vec<Process>> {
    let mut found = processes()?;
    found.retain(|process| {
        let first = process.command_line.split(' ').next().unwrap_or_default();
        process.state != 'Z' && first.rsplit('/').next() == Some(program)
    });
    Ok(found)
}

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))
        .with_context(|| format!("read /proc/{pid}/fd"))?
        .count())
}

/// Proportional set size in KiB: shared pages count by their share.
pub fn pss_kib(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Resident private memory in KiB: not files, and not the guest's memory, which is shared.
pub fn anonymous_kib(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/status"), "RssAnon:")
}

/// A line of /proc/PID/status, without its name.
pub fn status(pid: u32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line
        .with_context(|| format!("{name} in {path}"))?
        .trim()
        .to_owned())
}

fn field(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("{name} in {path}"))
}
