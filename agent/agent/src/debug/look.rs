//! What can be asked, and the answers.

use std::{fmt::Write as _, fs, sync::Arc};

use isopod_protocol::limits::STAT_FILES;

use super::{LookError, file, processes, unread};
use crate::pod::{Container, Pod};

const HELP: &str = "\
containers         those of this pod: state, first process, memory, number of processes
processes [all]    of all containers and the agent; with `all` the kernel's threads too
mounts [PID]       as a process sees them; without one, the agent
cgroup CONTAINER   what its control group counts and allows
memory             of the whole guest
kernel [LINES]     the last messages of the guest's kernel
read PATH          a file of /proc or /sys, or the names in a directory there
";

/// Messages that `kernel` tells unless it is told how many.
const MESSAGES: usize = 50;

/// A question, understood.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Help,
    Containers,
    Processes { all: bool },
    Mounts { pid: u32 },
    Cgroup { container: String },
    Memory,
    Kernel { messages: usize },
    Read { path: String },
}

impl Look {
    fn parse(line: &str) -> Result<Self, LookError> {
        let mut words = line.split_whitespace();
        let (first, rest) = (words.next().unwrap_or("help"), words.collect::<Vec<_>>());
        let wrong = |question, reason| Err(LookError::Words { question, reason });
        match (first, rest.as_slice()) {
            ("help", []) => Ok(Self::Help),
            ("containers", []) => Ok(Self::Containers),
            ("processes", []) => Ok(Self::Processes { all: false }),
            ("processes", ["all"]) => Ok(Self::Processes { all: true }),
            ("mounts", []) => Ok(Self::Mounts { pid: 1 }),
            ("mounts", [pid]) => match pid.parse() {
                Ok(pid) => Ok(Self::Mounts { pid }),
                Err(_) => wrong("mounts", "PID is a number"),
            },
            ("cgroup", [container]) => Ok(Self::Cgroup {
                container: (*container).to_owned(),
            }),
            ("cgroup", []) => wrong("cgroup", "of which container?"),
            ("memory", []) => Ok(Self::Memory),
            ("kernel", []) => Ok(Self::Kernel { messages: MESSAGES }),
            ("kernel", [messages]) => match messages.parse() {
                Ok(messages) => Ok(Self::Kernel { messages }),
                Err(_) => wrong("kernel", "LINES is a number"),
            },
            ("read", [path]) => Ok(Self::Read {
                path: (*path).to_owned(),
            }),
            ("read", []) => wrong("read", "which file?"),
            _ => Err(LookError::Unknown(line.trim().to_owned())),
        }
    }
}

/// Answers a line. It may wait for the kernel: not for a thread that serves.
pub(super) fn answer(line: &str, pod: &Pod) -> Result<String, LookError> {
    match Look::parse(line)? {
        Look::Help => Ok(HELP.to_owned()),
        Look::Containers => Ok(containers(&pod.containers())),
        Look::Processes { all } => processes::table(all),
        Look::Mounts { pid } => file::read(&format!("/proc/{pid}/mounts")),
        Look::Cgroup { container } => cgroup(pod, &container),
        Look::Memory => file::read("/proc/meminfo"),
        Look::Kernel { messages } => file::kernel_messages(messages),
        Look::Read { path } => file::read(&path),
    }
}

fn containers(all: &[Arc<Container>]) -> String {
    let mut lines: Vec<String> = all
        .iter()
        .map(|container| {
            let figure = |file| {
                let text = container.cgroup.read(file).ok().flatten();
                text.map_or_else(|| "-".to_owned(), |text| text.trim().to_owned())
            };
            format!(
                "{:<10} {:>7} {:>12} {:>6}  {}\n",
                container.init.state().to_string(),
                container.init.pid(),
                figure("memory.current"),
                figure("pids.current"),
                container.init.container,
            )
        })
        .collect();
    lines.sort();
    let head = format!(
        "{:<10} {:>7} {:>12} {:>6}  CONTAINER\n",
        "STATE", "PID", "MEMORY", "TASKS"
    );
    head + &lines.concat()
}

fn cgroup(pod: &Pod, id: &str) -> Result<String, LookError> {
    let container = pod.container(id);
    let container = container.map_err(|_| LookError::NoContainer(id.to_owned()))?;
    let mut text = String::new();
    for file in STAT_FILES {
        // A controller that the kernel lacks has no files.
        if let Ok(Some(content)) = container.cgroup.read(file) {
            let parts = content.trim_end().lines();
            let several = parts.clone().count() > 1;
            for part in parts {
                let gap = if several { "." } else { " " };
                let _ = writeln!(text, "{file}{gap}{part}");
            }
        }
    }
    let path = container.cgroup.path().join("cgroup.procs");
    let pids = fs::read_to_string(&path).map_err(unread(path.to_string_lossy()))?;
    let pids: Vec<&str> = pids.split_whitespace().collect();
    let _ = writeln!(text, "cgroup.procs {}", pids.join(" "));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_understood_or_refused_by_name() {
        let parsed = |line| Look::parse(line).map_err(|error| error.to_string());
        assert_eq!(parsed("\n"), Ok(Look::Help));
        assert_eq!(
            parsed(" processes  all\r\n"),
            Ok(Look::Processes { all: true })
        );
        assert_eq!(parsed("mounts 7"), Ok(Look::Mounts { pid: 7 }));
        assert_eq!(parsed("kernel 3"), Ok(Look::Kernel { messages: 3 }));
        let path = "/proc/1/stat".to_owned();
        assert_eq!(parsed("read /proc/1/stat"), Ok(Look::Read { path }));
        for (line, words) in [
            ("mounts -1", "PID"),
            ("mounts 1/../..", "PID"),
            ("kernel all", "LINES"),
            ("cgroup", "which"),
            ("read", "which"),
            ("sh -c ls", "help"),
            ("help me", "help"),
        ] {
            let told = parsed(line).unwrap_err();
            assert!(told.contains(words), "{line}: {told}");
        }
    }

    #[test]
    fn help_tells_all_that_can_be_asked() {
        for line in HELP.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let question = match words.as_slice() {
                ["mounts", ..] => "mounts 1".to_owned(),
                ["kernel", ..] => "kernel 1".to_owned(),
                [first @ ("cgroup" | "read"), ..] => format!("{first} x"),
                [first, ..] => (*first).to_owned(),
                [] => continue,
            };
            assert!(Look::parse(&question).is_ok(), "{question}");
        }
    }
}
