//! Starting, ending, deleting.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use containerd_shim_protos::events::task::{TaskDelete, TaskExecStarted, TaskExit, TaskStart};
use isopod_sandbox::{Error, Exit, ProcessId};
use tokio::{sync::oneshot, time};

use super::{Process, Tasks, detached, lock};
use crate::{
    convert,
    pod::{Answer, Launch, Pod},
};

/// After the end, output may stand still for so long before it is given up: as the runc shim.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// A killed, never started init ends within this.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// SIGKILL, and what a shell makes of it.
const SIGKILL: u32 = 9;
const KILLED: u32 = 128 + SIGKILL;
/// The exit code of an exec that could not be started: the runc shim's.
const NOT_STARTED: u32 = 255;

/// A deleted process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The task's pid on the host.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
}

impl<L: Launch> Tasks<L> {
    /// Starts a created process. Answers the task's pid on the host.
    pub async fn start(self: &Arc<Self>, id: ProcessId) -> Answer<u32> {
        let (_, process) = self.process(&id)?;
        let this = self.clone();
        detached(async move {
            let _order = process.order.lock().await;
            if process.exit().is_some() {
                let text = format!("process {} has ended already", process.event_id());
                return Err(Error::WrongState(text));
            }
            if process.started() {
                let text = format!("process {} runs already", process.event_id());
                return Err(Error::WrongState(text));
            }
            let pod = this.pod()?;
            if let Some(copies) = process.copies().as_mut() {
                let begun = copies.begin_input(&process.paths);
                begun.map_err(|error| Error::InvalidArgument(error.to_string()))?;
            }
            if let Err(error) = pod.start(id.clone()).await {
                if !process.is_init() {
                    // Nobody else will answer its waiters.
                    process.set_exit(ended(NOT_STARTED));
                }
                return Err(error);
            }
            process.set_started();
            let pid = pod.host_pid();
            if process.is_init() {
                this.events.publish(&TaskStart {
                    container_id: id.container,
                    pid,
                    ..TaskStart::default()
                });
            } else {
                this.events.publish(&TaskExecStarted {
                    container_id: id.container,
                    exec_id: id.exec,
                    pid,
                    ..TaskExecStarted::default()
                });
                this.watch_exit(pod.clone(), process.clone());
            }
            Ok(pid)
        })
        .await
    }

    /// Waits in the background for the end of a process, and tells of it.
    pub(super) fn watch_exit(self: &Arc<Self>, pod: L::Pod, process: Arc<Process>) {
        let this = self.clone();
        tokio::spawn(async move {
            let exit = pod.wait(process.id.clone()).await;
            let exit = exit.unwrap_or_else(|error| {
                tracing::error!(process = process.event_id(), %error, "an exit is unknown");
                ended(KILLED)
            });
            let _order = process.order.lock().await;
            let (passed, barrier) = oneshot::channel();
            if this.barriers.send(passed).await.is_ok() {
                let _ = barrier.await;
            }
            this.events.publish(&TaskExit {
                container_id: process.id.container.clone(),
                id: process.event_id().to_owned(),
                pid: pod.host_pid(),
                exit_status: exit.code,
                exited_at: Some(convert::timestamp(exit.at)).into(),
                ..TaskExit::default()
            });
            tracing::info!(
                container = process.id.container,
                exec = process.id.exec,
                code = exit.code,
                "process ended"
            );
            process.set_exit(exit);
        });
    }

    /// Frees a process that has ended or never began; of init, the container.
    pub async fn delete(self: &Arc<Self>, id: ProcessId) -> Answer<Deleted> {
        let (_, process) = self.process(&id)?;
        let this = self.clone();
        detached(async move {
            let _deletion = process.deletion.lock().await;
            let (container, process) = this.process(&id)?;
            let pod = this.pod()?;
            if process.exit().is_none() {
                if process.started() {
                    let text = format!("process {} runs: kill it first", process.event_id());
                    return Err(Error::WrongState(text));
                }
                if process.is_init() {
                    kill_created(pod, &process).await?;
                }
            }
            let copies = process.copies().take();
            if let Some(copies) = copies {
                copies.drain(DRAIN_PATIENCE).await;
            }
            let known = process.exit();
            let exit = match pod.delete(id.clone()).await {
                Ok(exit) => known.unwrap_or(exit),
                // With its VM gone there is nothing to free.
                Err(Error::NotFound(_) | Error::VmGone(_)) => known.unwrap_or(ended(KILLED)),
                // An exec that never began has no exit, and is gone with its container.
                Err(Error::WrongState(_)) if !process.is_init() => known.unwrap_or(ended(0)),
                Err(error) => return Err(error),
            };
            let pid = pod.host_pid();
            if process.is_init() {
                lock(&this.containers).remove(&id.container);
                this.events.publish(&TaskDelete {
                    container_id: id.container,
                    pid,
                    exit_status: exit.code,
                    exited_at: Some(convert::timestamp(exit.at)).into(),
                    ..TaskDelete::default()
                });
                this.departed();
            } else {
                lock(&container.execs).remove(&id.exec);
            }
            Ok(Deleted { pid, exit })
        })
        .await
    }

    /// One container less.
    pub(super) fn departed(&self) {
        self.presence
            .send_modify(|p| p.containers = p.containers.saturating_sub(1));
    }
}

/// Ends an init that waits for a start that never comes.
async fn kill_created<P: Pod>(pod: &P, process: &Process) -> Answer<()> {
    match pod.kill(process.id.clone(), SIGKILL, false).await {
        Ok(()) | Err(Error::NotFound(_) | Error::VmGone(_)) => {}
        Err(error) => return Err(error),
    }
    if time::timeout(KILL_PATIENCE, process.wait()).await.is_err() {
        let text = format!("container {} does not end", process.id.container);
        return Err(Error::Failed(text));
    }
    Ok(())
}

fn ended(code: u32) -> Exit {
    Exit {
        pid: 0,
        code,
        at: SystemTime::now(),
    }
}
