//! `delete`: a server died; remove what it left, and say how its container ended.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use containerd_shim_protos::{api::DeleteResponse, protobuf::Message};
use isopod_sandbox::Sandbox;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{args::Args, bundle, bundle::ServerRecord, convert};

/// How long a living server gets to end its pod in order; containerd waits 5 s for all of `delete`.
const GRACE: Duration = Duration::from_secs(2);
/// 128 + SIGKILL: its VM was killed.
const KILLED: u32 = 137;

/// Runs `delete` for the bundle and prints a `DeleteResponse`.
pub fn delete(args: &Args) -> anyhow::Result<()> {
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => env::current_dir().context("the bundle")?,
    };
    let record = ServerRecord::read(&bundle);
    if let Some(record) = &record {
        end(record);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting")?;
    runtime
        .block_on(Sandbox::clean_up(&bundle))
        .with_context(|| format!("cleaning up after {}", bundle.display()))?;
    remove_stale_socket(&bundle);

    let response = DeleteResponse {
        pid: record.map_or(0, |record| record.task_pid),
        exit_status: KILLED,
        exited_at: Some(convert::timestamp(SystemTime::now())).into(),
        ..DeleteResponse::default()
    };
    io::stdout()
        .write_all(&response.write_to_bytes()?)
        .context("printing the response")
}

/// containerd calls `delete` also for a server that lives but did not answer in time: nobody would
/// ever end it. Signals go through a pidfd, so that they cannot reach a process that took its number.
fn end(record: &ServerRecord) {
    let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
        if !record.lives() || pidfd_send_signal(&process, signal).is_err() {
            return;
        }
        let deadline = Instant::now() + patience;
        while record.lives() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A later container of the pod has a server of its own by now, perhaps: only a socket that nobody
/// answers on is removed.
fn remove_stale_socket(bundle: &Path) {
    let Some(socket) = bundle::read_socket(bundle) else {
        return;
    };
    let Some(directory) = socket.parent().filter(|directory| directory.exists()) else {
        return;
    };
    let Ok(_lock) = crate::bootstrap::lock(directory) else {
        return;
    };
    if UnixStream::connect(&socket).is_err() {
        let _ = fs::remove_file(&socket);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_a_stale_socket_is_removed() {
        let bundle = tempfile::tempdir().expect("a directory");
        let socket = bundle.path().join("s");
        let listener = UnixListener::bind(&socket).expect("binds");
        let address = format!("unix://{}", socket.display());
        bundle::write_address(bundle.path(), &address).expect("written");
        remove_stale_socket(bundle.path());
        assert!(socket.exists());
        drop(listener);
        remove_stale_socket(bundle.path());
        assert!(!socket.exists());
    }

    #[test]
    fn a_living_server_is_ended_and_a_stranger_is_not() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .expect("sleep runs");
        let record = ServerRecord::of(child.id()).expect("it lives");
        end(&ServerRecord {
            start_time: record.start_time.wrapping_add(1),
            ..record.clone()
        });
        assert!(record.lives());
        end(&record);
        assert!(!record.lives());
        child.wait().expect("reaped");
    }
}
