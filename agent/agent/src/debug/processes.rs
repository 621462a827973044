//! Processes, as /proc tells them (proc(5)).

use std::fs;

use super::{LookError, unread};

/// The parent of the kernel's threads.
const KTHREADD: u32 = 2;
/// Characters of a command line.
const COMMAND: usize = 200;

/// A process's line of /proc/PID/stat, as far as it is told.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: String,
    parent: u32,
    /// Clock ticks in user and in system mode.
    ticks: u64,
    /// Resident pages.
    pages: u64,
}

/// `PID (NAME) STATE PARENT ...`; the name may hold anything.
fn parse_stat(stat: &str) -> Option<Stat> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    // Fields are numbered from 1 and these are from the third on.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        name: name.to_owned(),
        state: (*fields.first()?).to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(14)?.saturating_add(number(15)?),
        pages: number(24)?,
    })
}

/// A container's id in /proc/PID/cgroup: its group's name below the unified root.
fn parse_cgroup(cgroup: &str) -> Option<&str> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.split('/')
        .find_map(|part| part.strip_prefix("container-"))
}

/// A table of all processes, with the kernel's threads if `all`.
pub(super) fn table(all: bool) -> Result<String, LookError> {
    let entries = fs::read_dir("/proc").map_err(unread("/proc"))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut pids: Vec<u32> = names.collect();
    pids.sort_unstable();
    let mut text = format!(
        "{:>7} {:>7} S {:>8} {:>8}  {:<16}  COMMAND\n",
        "PID", "PARENT", "KIB", "CPU s", "CONTAINER"
    );
    // A process that is gone by now is no fault.
    text.extend(pids.into_iter().filter_map(|pid| line(pid, all)));
    Ok(text)
}

fn line(pid: u32, all: bool) -> Option<String> {
    let read = |file| fs::read(format!("/proc/{pid}/{file}"));
    let stat = parse_stat(&String::from_utf8_lossy(&read("stat").ok()?))?;
    if !all && (pid == KTHREADD || stat.parent == KTHREADD) {
        return None;
    }
    let cgroup = String::from_utf8_lossy(&read("cgroup").unwrap_or_default()).into_owned();
    let command = read("cmdline").unwrap_or_default();
    let command = String::from_utf8_lossy(&command);
    let command: String = command
        .trim_end_matches('\0')
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(COMMAND)
        .collect();
    let command = match command.is_empty() {
        true => format!("[{}]", stat.name),
        false => command,
    };
    let pages = u64::try_from(rustix::param::page_size()).ok()?;
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    Some(format!(
        "{pid:>7} {:>7} {} {:>8} {:>8}  {:<16}  {command}\n",
        stat.parent,
        stat.state,
        stat.pages.saturating_mul(pages) >> 10,
        stat.ticks / ticks,
        parse_cgroup(&cgroup).unwrap_or("-"),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const REST: &str = "1 1 1 0 -1 4194560 2 3 0 0 12 30 0 0 20 0 1 0 5 1000 77 184 1 1";

    #[rstest]
    #[case("a")]
    #[case("a b)")]
    #[case(") R 9 (")]
    fn a_name_may_hold_anything(#[case] name: &str) {
        let stat = parse_stat(&format!("7 ({name}) S {REST}")).unwrap();
        let expected = Stat {
            name: name.to_owned(),
            state: "S".to_owned(),
            parent: 1,
            ticks: 42,
            pages: 77,
        };
        assert_eq!(stat, expected);
    }

    #[rstest]
    #[case("0::/container-web\n", Some("web"))]
    #[case("3:cpu:/x\n0::/isopod-test/container-a.b/deeper\n", Some("a.b"))]
    #[case("0::/\n", None)]
    #[case("", None)]
    fn a_container_is_known_by_its_group(#[case] text: &str, #[case] id: Option<&str>) {
        assert_eq!(parse_cgroup(text), id);
    }

    #[test]
    fn this_process_is_in_the_table() {
        let text = table(false).unwrap();
        let pid = std::process::id().to_string();
        let own = text
            .lines()
            .find(|line| line.trim_start().starts_with(&pid));
        assert!(own.is_some_and(|line| line.contains("agent")), "{text}");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,200}") {
            let _ = parse_stat(&text);
            let _ = parse_cgroup(&text);
        }
    }
}
