//! Processes of this machine, from /proc.

use std::{collections::BTreeMap, fs};

/// A process, as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// The kernel's name for it, at most 15 bytes.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Process {
    /// A variable of the environment it was started with, if one may look.
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        environment.split(|byte| *byte == 0).find_map(|entry| {
            let entry = String::from_utf8_lossy(entry);
            let (key, value) = entry.split_once('=')?;
            (key == name).then(|| value.to_owned())
        })
    }

    /// Proportional set size in KiB: shared pages are divided among those who share them.
    pub fn pss_kib(&self) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        parse_pss(&text)
    }
}

/// All processes that are there now.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(read).collect()
}

/// The process and all its descendants among `all`.
pub fn family(all: &[Process], pid: u32) -> Vec<Process> {
    let mut children: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut family: Vec<Process> = all.iter().filter(|p| p.pid == pid).cloned().collect();
    let mut next = 0;
    while let Some(member) = family.get(next) {
        let born = children.remove(&member.pid).unwrap_or_default();
        let born = born.into_iter().filter(|child| child.pid != member.pid);
        let born: Vec<Process> = born.cloned().collect();
        family.extend(born);
        next += 1;
    }
    family
}

fn read(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, parent) = parse_stat(&stat)?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = arguments.split(|byte| *byte == 0);
    Some(Process {
        pid,
        parent,
        name,
        arguments: arguments
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect(),
    })
}

/// proc(5): `PID (NAME) STATE PARENT ...`; the name may hold anything.
fn parse_stat(stat: &str) -> Option<(String, u32)> {
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once(" (")?;
    let parent = after.split(' ').nth(1)?.parse().ok()?;
    Some((name.to_owned(), parent))
}

fn parse_pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files() {
        assert_eq!(parse_stat("7 (a) (b) S 3 7 7"), Some(("a) (b".into(), 3)));
        assert_eq!(parse_stat("7"), None);
        assert_eq!(
            parse_pss("Rss: 9 kB\nPss:      12 kB\nPss_Anon: 1 kB\n"),
            Some(12)
        );
        assert_eq!(parse_pss(""), None);
    }

    #[test]
    fn families() {
        let process = |pid, parent| Process {
            pid,
            parent,
            name: String::new(),
            arguments: Vec::new(),
        };
        let all = [
            process(1, 0),
            process(2, 1),
            process(3, 2),
            process(4, 3),
            process(5, 1),
            // A process that claims to be its own parent must not loop.
            process(6, 6),
        ];
        let pids = |pid| -> Vec<u32> { family(&all, pid).iter().map(|p| p.pid).collect() };
        assert_eq!(pids(2), [2, 3, 4]);
        assert_eq!(pids(5), [5]);
        assert_eq!(pids(9), [0u32; 0]);
        assert_eq!(pids(6), [6]);
    }

    #[test]
    fn this_process_is_among_all() {
        let me = std::process::id();
        let found = all().into_iter().find(|process| process.pid == me);
        assert!(
            found
                .and_then(|process| process.pss_kib())
                .is_some_and(|kib| kib > 0)
        );
    }
}
