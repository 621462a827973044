//! One process of a pod on the host: its exit and its end.

use std::{
    fs, io,
    process::{Child, ExitStatus},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{HostError, readable::Readable, record::RecordedProcess};

/// How long a killed process may take to end: it may be in the middle of a write to a slow disk.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// A child of ours. Dropped alive, it is killed: nothing outlives its owner.
pub(crate) struct HostProcess {
    name: &'static str,
    child: Child,
    pidfd: Readable,
    start_time: u64,
    status: Option<ExitStatus>,
}

impl HostProcess {
    /// Takes charge of a child.
    pub fn new(name: &'static str, mut child: Child) -> Result<Self, HostError> {
        let act = |child: &Child| -> io::Result<_> {
            let pid = pid(child.id()).ok_or(io::ErrorKind::InvalidInput)?;
            let pidfd = Readable::new(pidfd_open(pid, PidfdFlags::empty())?)?;
            Ok((pidfd, start_time(child.id())?))
        };
        match act(&child) {
            Ok((pidfd, start_time)) => Ok(Self {
                name,
                child,
                pidfd,
                start_time,
                status: None,
            }),
            Err(source) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(HostError::path("watch the process", name)(source))
            }
        }
    }

    /// The host's pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// For the record.
    pub fn recorded(&self) -> RecordedProcess {
        RecordedProcess {
            name: self.name.to_owned(),
            pid: self.pid(),
            start_time: self.start_time,
        }
    }

    /// Waits for its end. May be dropped and called again.
    pub async fn exited(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        // A pidfd is readable once its process is a zombie (pidfd_open(2)).
        let child = &mut self.child;
        let status = self
            .pidfd
            .when_ready(|| child.try_wait().ok().flatten())
            .await;
        self.status = Some(status);
        status
    }

    /// Kills it and waits until it has ended.
    pub async fn kill(&mut self) -> Result<(), HostError> {
        if self.status.is_some() {
            return Ok(());
        }
        // It may have ended meanwhile.
        let _ = self.child.kill();
        match tokio::time::timeout(KILL_WAIT, self.exited()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(HostError::Unkillable {
                name: self.name.to_owned(),
                pid: self.pid(),
                seconds: KILL_WAIT.as_secs(),
            }),
        }
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn pid(raw: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(raw).ok()?)
}

/// proc(5), /proc/PID/stat, field 22. The second field is a name in parentheses that may hold anything.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
    let field = after_name.and_then(|rest| rest.split_ascii_whitespace().nth(19));
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::other("unknown format of /proc/PID/stat"))
}

/// Kills a recorded process that is no child of ours, if it still is the one that was recorded.
pub(crate) async fn kill_recorded(process: &RecordedProcess) -> Result<(), HostError> {
    let Some(pid) = pid(process.pid) else {
        return Ok(());
    };
    let what = || format!("{} (pid {})", process.name, process.pid);
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(HostError::path("watch the process", what())(errno)),
    };
    // Read after the pidfd was opened: it cannot become another's any more.
    match start_time(process.pid) {
        Ok(start_time) if start_time == process.start_time => {}
        _ => return Ok(()),
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(errno) => return Err(HostError::path("kill", what())(errno)),
    }
    let ended = Readable::new(pidfd).map_err(HostError::path("watch the process", what()))?;
    match tokio::time::timeout(KILL_WAIT, ended.when_ready(|| Some(()))).await {
        Ok(_) => Ok(()),
        Err(_) => Err(HostError::Unkillable {
            name: process.name.clone(),
            pid: process.pid,
            seconds: KILL_WAIT.as_secs(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    fn sleeper() -> Child {
        Command::new("/bin/sleep").arg("1000").spawn().unwrap()
    }

    #[tokio::test]
    async fn exit_is_seen_and_stays() {
        let child = Command::new("/bin/sh")
            .args(["-c", "exit 7"])
            .spawn()
            .unwrap();
        let mut process = HostProcess::new("test", child).unwrap();
        assert_eq!(process.exited().await.code(), Some(7));
        assert_eq!(process.exited().await.code(), Some(7));
        process.kill().await.unwrap();
    }

    #[tokio::test]
    async fn kill_ends_it() {
        let mut process = HostProcess::new("test", sleeper()).unwrap();
        process.kill().await.unwrap();
        assert_eq!(process.exited().await.signal(), Some(9));
    }

    #[tokio::test]
    async fn drop_ends_it() {
        let process = HostProcess::new("test", sleeper()).unwrap();
        let pid = process.pid();
        drop(process);
        assert!(start_time(pid).is_err());
    }

    #[tokio::test]
    async fn only_the_recorded_process_is_killed() {
        let mut process = HostProcess::new("test", sleeper()).unwrap();
        let mut other = process.recorded();
        other.start_time += 1;
        kill_recorded(&other).await.unwrap();
        assert!(process.child.try_wait().unwrap().is_none());
        kill_recorded(&process.recorded()).await.unwrap();
        assert_eq!(process.exited().await.signal(), Some(9));
        kill_recorded(&process.recorded()).await.unwrap();
    }
}
