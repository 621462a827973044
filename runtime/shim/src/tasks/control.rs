//! Calls that act on what runs, and questions about it.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use isopod_sandbox::{Error, Exit, ProcessId, Stats, Status};
use oci_spec::runtime::LinuxResources;

use super::{Tasks, detached};
use crate::{
    io::Paths,
    pod::{Answer, Launch, Pod},
};

/// A process, for State.
pub struct State {
    /// The container's bundle.
    pub bundle: PathBuf,
    /// The task's pid on the host: its VM's.
    pub pid: u32,
    /// Its place in its life.
    pub status: Status,
    /// Its streams.
    pub paths: Paths,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
}

/// Who serves, for Connect.
pub struct Connection {
    /// The VM's pid; 0 before there is one.
    pub task_pid: u32,
}

impl<L: Launch> Tasks<L> {
    /// A process as it is now.
    pub fn state(&self, id: &ProcessId) -> Answer<State> {
        let (container, process) = self.process(id)?;
        Ok(State {
            bundle: container.bundle.clone(),
            pid: self.pod()?.host_pid(),
            status: process.status(container.paused()),
            paths: process.paths.clone(),
            exit: process.exit(),
        })
    }

    /// Waits for a process's end.
    pub async fn wait(&self, id: &ProcessId) -> Answer<Exit> {
        let (_, process) = self.process(id)?;
        let gone = || Error::NotFound(format!("process {} is gone", process.event_id()));
        process.wait().await.ok_or_else(gone)
    }

    /// The VM's pid.
    pub fn connect(&self) -> Connection {
        Connection {
            task_pid: self.pod.get().map_or(0, Pod::host_pid),
        }
    }

    /// Sends a signal.
    pub async fn kill(&self, id: ProcessId, signal: u32, all: bool) -> Answer<()> {
        let (_, process) = self.process(&id)?;
        let ended = || Error::NotFound(format!("process {} has ended", process.event_id()));
        // What init leaves behind when it shares its PID namespace can still be killed.
        if process.exit().is_some() && !all {
            return Err(ended());
        }
        if !process.is_init() && !process.started() {
            let text = format!("process {} has not been started", process.event_id());
            return Err(Error::WrongState(text));
        }
        match self.pod()?.kill(id, signal, all).await {
            // It ended while the signal was under way, its VM with it.
            Err(Error::VmGone(_)) => Err(ended()),
            answer => answer,
        }
    }

    /// Sets a terminal's size. Without one there is nothing to do, and runc's shim says so too.
    pub async fn resize(&self, id: ProcessId, columns: u32, rows: u32) -> Answer<()> {
        let (_, process) = self.process(&id)?;
        if process.exit().is_some() || !process.paths.terminal {
            return Ok(());
        }
        self.pod()?.resize(id, columns, rows).await
    }

    /// Lets standard input end once its writers have closed it.
    pub fn close_input(&self, id: &ProcessId) -> Answer<()> {
        let (_, process) = self.process(id)?;
        if let Some(copies) = process.copies().as_mut() {
            copies.close_input();
        }
        Ok(())
    }

    /// Guest pids with the execs' ids. Of an ended container its init's: an empty answer means to
    /// containerd 1.7 that the shim is a left-over.
    pub async fn pids(&self, id: &str) -> Answer<Vec<(u32, String)>> {
        let container = self.container(id)?;
        if let Some(exit) = container.init.exit() {
            return Ok(vec![(exit.pid, String::new())]);
        }
        self.pod()?.pids(id).await
    }

    /// Resource use, until the container is deleted.
    pub async fn stats(&self, id: &str) -> Answer<Stats> {
        self.container(id)?;
        match self.pod()?.stats(id).await {
            Err(Error::VmGone(_)) => Err(Error::NotFound(format!("container {id} has ended"))),
            answer => answer,
        }
    }

    /// Freezes a container.
    pub async fn pause(self: &Arc<Self>, id: String) -> Answer<()> {
        let container = self.container(&id)?;
        match container.init.status(container.paused()) {
            Status::Running => {}
            found => return Err(Error::WrongState(format!("container {id} is {found:?}"))),
        }
        let this = self.clone();
        detached(async move {
            this.pod()?.pause(&id).await?;
            container.paused.store(true, Ordering::Release);
            this.events.publish(&TaskPaused {
                container_id: id,
                ..TaskPaused::default()
            });
            Ok(())
        })
        .await
    }

    /// Thaws a container.
    pub async fn resume(self: &Arc<Self>, id: String) -> Answer<()> {
        let container = self.container(&id)?;
        match container.init.status(container.paused()) {
            Status::Paused => {}
            found => return Err(Error::WrongState(format!("container {id} is {found:?}"))),
        }
        let this = self.clone();
        detached(async move {
            this.pod()?.resume(&id).await?;
            container.paused.store(false, Ordering::Release);
            this.events.publish(&TaskResumed {
                container_id: id,
                ..TaskResumed::default()
            });
            Ok(())
        })
        .await
    }

    /// Changes limits.
    pub async fn update(self: &Arc<Self>, id: String, resources: LinuxResources) -> Answer<()> {
        self.container(&id)?;
        let this = self.clone();
        detached(async move { this.pod()?.update(&id, resources).await }).await
    }
}
