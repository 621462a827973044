//! `delete`: containerd lost its connection to a container's server. Remove what is left of the
//! container, and say how it ended.
//!
//! ```text
//! the server answers -+- it does not know the container: deleted in order, nothing to do
//!                     +- it does: kill and delete it there; the pod's other containers go on
//! nobody is there ----> end what is ending, then remove all that the pod's record in the bundle names
//! it does not answer -> an error: a busy machine is no reason to kill a pod
//! ```
//! The first case is the usual one: containerd closes its connection after each orderly deletion, and
//! then runs `delete` all the same.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use containerd_shim_protos::{
    api::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, StateRequest, WaitRequest},
    protobuf::Message,
    shim_async::{Client, TaskClient},
    ttrpc::{self, Code, context},
};
use isopod_sandbox::Sandbox;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{args::Args, bundle, bundle::ServerRecord, convert};

/// How long a server without a socket, which is ending, gets to end its pod in order; containerd waits
/// 5 s for all of `delete`.
const GRACE: Duration = Duration::from_secs(2);
/// How long a server may think about one question.
const PATIENCE: Duration = Duration::from_secs(3);
/// 128 + SIGKILL: its VM was killed.
const KILLED: u32 = 137;
const SIGKILL: u32 = 9;

/// What the server says about the container.
#[derive(Debug)]
enum Server {
    /// Nobody listens on its socket.
    Gone,
    /// Somebody listens, and does not answer, or not with sense.
    Mute(ttrpc::Error),
    /// It serves, and has no such container.
    Elsewhere,
    /// It had the container, and has deleted it.
    Deleted(DeleteResponse),
}

/// Runs `delete` for the bundle and prints a `DeleteResponse`.
pub fn delete(args: &Args) -> anyhow::Result<()> {
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => env::current_dir().context("the bundle")?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting")?;
    // Read before anything ends: containerd removes the bundle meanwhile.
    let record = ServerRecord::read(&bundle);
    let mut response = DeleteResponse {
        pid: record.as_ref().map_or(0, |record| record.task_pid),
        exit_status: KILLED,
        exited_at: Some(convert::timestamp(SystemTime::now())).into(),
        ..DeleteResponse::default()
    };
    match runtime.block_on(ask_server(&bundle, &args.id)) {
        Server::Elsewhere => {}
        Server::Deleted(deleted) => response = deleted,
        Server::Mute(error) => {
            return Err(error).context("the pod's server lives but does not answer");
        }
        Server::Gone => {
            if let Some(record) = &record {
                end(record);
            }
            runtime
                .block_on(Sandbox::clean_up(&bundle))
                .with_context(|| format!("cleaning up after {}", bundle.display()))?;
            remove_stale_socket(&bundle);
        }
    }
    io::stdout()
        .write_all(&response.write_to_bytes()?)
        .context("printing the response")
}

/// Asks the server on the bundle's socket, if there is one, to be rid of the container.
async fn ask_server(bundle: &Path, id: &str) -> Server {
    let Some(socket) = bundle::read_socket(bundle) else {
        return Server::Gone;
    };
    let Ok(client) = Client::connect(&format!("unix://{}", socket.display())).await else {
        return Server::Gone;
    };
    let tasks = TaskClient::new(client);
    let known = tasks
        .state(context::with_duration(PATIENCE), &state(id))
        .await;
    match known {
        Ok(_) => {}
        Err(error) if is_not_found(&error) => return Server::Elsewhere,
        Err(error) => return answerless(&socket, error),
    }
    match remove(&tasks, id).await {
        Ok(response) => Server::Deleted(response),
        Err(error) if is_not_found(&error) => Server::Elsewhere,
        Err(error) => answerless(&socket, error),
    }
}

/// A server that ended between two questions is gone, not mute.
fn answerless(socket: &Path, error: ttrpc::Error) -> Server {
    if UnixStream::connect(socket).is_ok() {
        Server::Mute(error)
    } else {
        Server::Gone
    }
}

/// Kills the container, deletes it, and lets the server end if it was the last.
async fn remove(tasks: &TaskClient, id: &str) -> ttrpc::Result<DeleteResponse> {
    let patience = || context::with_duration(PATIENCE);
    let kill = KillRequest {
        id: id.to_owned(),
        signal: SIGKILL,
        all: true,
        ..KillRequest::default()
    };
    // Of one that has ended there is nothing to kill.
    let _ = tasks.kill(patience(), &kill).await;
    let wait = WaitRequest {
        id: id.to_owned(),
        ..WaitRequest::default()
    };
    tasks.wait(patience(), &wait).await?;
    let delete = DeleteRequest {
        id: id.to_owned(),
        ..DeleteRequest::default()
    };
    let response = tasks.delete(patience(), &delete).await?;
    let shutdown = ShutdownRequest {
        id: id.to_owned(),
        ..ShutdownRequest::default()
    };
    // It answers, or is gone before it could.
    let _ = tasks.shutdown(patience(), &shutdown).await;
    Ok(response)
}

fn state(id: &str) -> StateRequest {
    StateRequest {
        id: id.to_owned(),
        ..StateRequest::default()
    }
}

fn is_not_found(error: &ttrpc::Error) -> bool {
    matches!(error, ttrpc::Error::RpcStatus(status) if status.code() == Code::NOT_FOUND)
}

/// A server that lives without its socket is ending; it does not get for ever. Signals go through a pidfd, so
/// that they cannot reach a process that took its number.
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
            thread::sleep(Duration::from_millis(5));
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
#[path = "delete_tests.rs"]
mod tests;
