//! The agent's messages <-> our types. What comes from the guest is not trusted.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isopod_protocol::agent;

use super::StreamIds;
use crate::{Exit, ProcessId};

/// Longest text of the guest that is passed on, in characters.
const TEXT_LEN: usize = 4096;

impl From<&ProcessId> for agent::ProcessRequest {
    fn from(id: &ProcessId) -> Self {
        Self {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            ..Default::default()
        }
    }
}

impl From<StreamIds> for agent::Stdio {
    fn from(ids: StreamIds) -> Self {
        Self {
            terminal: ids.terminal,
            stdin: ids.stdin,
            stdout: ids.stdout,
            stderr: ids.stderr,
            ..Default::default()
        }
    }
}

pub(super) fn container(id: &str) -> agent::ContainerRequest {
    agent::ContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

pub(super) fn range(range: std::ops::Range<u64>) -> agent::MemoryRange {
    agent::MemoryRange {
        start: range.start,
        bytes: range.end.saturating_sub(range.start),
        ..Default::default()
    }
}

/// An exit. The time is the guest's: one far from ours is replaced by ours.
pub(super) fn exit(status: &agent::ExitStatus) -> Exit {
    let now = SystemTime::now();
    let told = u64::try_from(status.exited_at_ns).ok();
    let told = told.and_then(|ns| UNIX_EPOCH.checked_add(Duration::from_nanos(ns)));
    let near = |at: &SystemTime| {
        let distance = now.duration_since(*at).or_else(|_| at.duration_since(now));
        distance.is_ok_and(|distance| distance < Duration::from_secs(3600))
    };
    Exit {
        pid: status.pid,
        code: status.code.min(255),
        at: told.filter(near).unwrap_or(now),
    }
}

/// Text of the guest, bounded and without control characters: it ends in logs and on terminals.
pub(super) fn plain(text: &str) -> String {
    let kept = text.chars().take(TEXT_LEN);
    kept.map(|c| if c.is_control() && c != '\n' { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u32, exited_at_ns: i64) -> agent::ExitStatus {
        agent::ExitStatus {
            pid: 7,
            code,
            exited_at_ns,
            ..Default::default()
        }
    }

    #[test]
    fn an_exit_is_what_the_guest_says_within_reason() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let told = i64::try_from(now.as_nanos()).unwrap() - 1_000_000_000;
        let found = exit(&status(3, told));
        assert_eq!((found.pid, found.code), (7, 3));
        let since = found.at.duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(i64::try_from(since.as_nanos()).unwrap(), told);
    }

    #[test]
    fn nonsense_of_a_guest_is_bounded() {
        for at in [i64::MIN, -1, 0, i64::MAX] {
            let found = exit(&status(u32::MAX, at));
            assert_eq!(found.code, 255);
            assert!(found.at.elapsed().unwrap_or_default() < Duration::from_secs(60));
        }
        assert_eq!(plain("a\x1b[0m\nb\u{7}"), "a?[0m\nb?");
        assert_eq!(plain(&"é".repeat(10_000)).chars().count(), TEXT_LEN);
    }
}
