//! What a pod has on the host: its processes, its directory, its record. Made step by step by
//! `launch`, owned by the driver, ended in one place.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::task::{JoinHandle, spawn_blocking};

use crate::{
    Error,
    engine::{Machine, Spare},
    file_server::FileServer,
    host::{
        HostError,
        cgroup::{self, PodGroup},
        pod_dir,
        process::kill_recorded,
        record::Record,
        spawner::Spawner,
    },
    plan::{PodPaths, PodPlan},
};

/// How far the machine's end may be behind the file server's that it caused.
const MACHINE_ENDS: Duration = Duration::from_secs(1);

/// A pod's things on the host.
pub(crate) struct PodHost {
    pub plan: PodPlan,
    record: Record,
    group: PodGroup,
    /// On its way into the group, each of them: version 1 wants some milliseconds for it.
    joining: Vec<JoinHandle<Result<(), HostError>>>,
    /// Ended first: a guest that is gone asks the server for nothing.
    machine: Option<Box<dyn Machine>>,
    file_server: Option<FileServer>,
    /// Our end of the lifeline, and the thread that the processes' death signals follow.
    holds: Option<(OwnedFd, Spawner)>,
}

impl PodHost {
    /// Records what will be made.
    pub fn new(plan: PodPlan) -> Result<Self, HostError> {
        let group = PodGroup::find(&plan.cgroup)?;
        let record = Record {
            id: plan.id.clone(),
            dir: plan.paths.dir.clone(),
            groups: group.missing(),
            processes: Vec::new(),
        };
        record.write(&plan.bundle)?;
        Ok(Self {
            plan,
            record,
            group,
            joining: Vec::new(),
            machine: None,
            file_server: None,
            holds: None,
        })
    }

    pub fn hold(&mut self, lifeline: OwnedFd, spawner: Spawner) {
        self.holds = Some((lifeline, spawner));
    }

    /// Makes the pod's control group.
    pub fn make_group(&self) -> Result<(), HostError> {
        self.group.create()
    }

    pub fn add_file_server(&mut self, server: FileServer) -> Result<(), HostError> {
        self.join(server.process().pid);
        self.record.processes.push(server.process());
        self.file_server = Some(server);
        self.record.write(&self.plan.bundle)
    }

    pub fn add_machine(&mut self, machine: Box<dyn Machine>) -> Result<(), HostError> {
        self.join(machine.process().pid);
        self.record.processes.push(machine.process());
        self.machine = Some(machine);
        self.record.write(&self.plan.bundle)
    }

    fn join(&mut self, pid: u32) {
        let group = self.group.clone();
        self.joining.push(spawn_blocking(move || group.add(pid)));
    }

    /// Waits until both processes do their work, in the pod's group.
    pub async fn started(&mut self) -> Result<(), Error> {
        for joining in self.joining.drain(..) {
            joining.await.unwrap_or(Err(HostError::Spawner))?;
        }
        if let Some(server) = &mut self.file_server {
            server.serving().await?;
        }
        if let Some(machine) = &mut self.machine {
            machine.running().await?;
        }
        Ok(())
    }

    /// Waits until a process of the pod ends: why, and what the guest said last. May be dropped and
    /// called again.
    pub async fn exited(&mut self) -> String {
        match (&mut self.machine, &mut self.file_server) {
            (Some(machine), Some(server)) => tokio::select! {
                reason = machine.exited() => reason,
                reason = server.exited() => {
                    // It ends by itself when its machine does: then that is the reason.
                    let machine = tokio::time::timeout(MACHINE_ENDS, machine.exited());
                    machine.await.unwrap_or(reason)
                }
            },
            (Some(machine), None) => machine.exited().await,
            (None, _) => std::future::pending().await,
        }
    }

    /// `what`, with the guest's last words.
    pub fn explain(&self, what: &str) -> String {
        match &self.machine {
            Some(machine) => machine.console().explain(what),
            None => what.to_owned(),
        }
    }

    /// What is on record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What the machine grows by.
    pub fn spare(&self) -> Option<Box<dyn Spare>> {
        self.machine.as_ref().map(|machine| machine.spare())
    }

    /// (name, pid) of each process.
    pub fn processes(&self) -> Vec<(String, u32)> {
        let processes = self.record.processes.iter();
        processes
            .map(|process| (process.name.clone(), process.pid))
            .collect()
    }

    /// The machine's pid.
    pub fn machine_pid(&self) -> u32 {
        self.machine
            .as_ref()
            .map_or(0, |machine| machine.process().pid)
    }

    /// Waits for the machine's own end.
    pub async fn machine_ended(&mut self, limit: Duration) -> bool {
        match &mut self.machine {
            Some(machine) => tokio::time::timeout(limit, machine.exited()).await.is_ok(),
            None => true,
        }
    }

    /// Ends the processes. Goes on after a failure; tells the first.
    pub async fn end_processes(&mut self, grace: Duration) -> Result<(), HostError> {
        let mut first = Ok(());
        if let Some(mut machine) = self.machine.take() {
            first = machine.end(grace).await;
        }
        if let Some(mut server) = self.file_server.take() {
            first = first.and(server.kill().await);
        }
        self.holds = None;
        first
    }

    /// Ends and removes everything. Goes on after a failure; tells the first. Idempotent.
    pub async fn remove(&mut self, grace: Duration) -> Result<(), Error> {
        let ended = self.end_processes(grace).await;
        let removed = remove_places(&self.plan.paths, &self.record.groups).await;
        // What could not be removed stays on record, so that a later attempt finds it.
        ended?;
        removed?;
        Ok(Record::remove(&self.plan.bundle)?)
    }

    /// Undoes a launch that failed; answers why it failed.
    pub async fn abandon(mut self, error: Error) -> Error {
        if let Err(undo) = self.remove(Duration::ZERO).await {
            tracing::warn!(pod = self.plan.id, %undo, "undo a failed launch");
        }
        error
    }
}

/// Removes what a record names: for the caller whose predecessor died.
pub(crate) async fn remove_recorded(bundle: &Path, record: Record) -> Result<(), Error> {
    let mut ended = Ok(());
    for process in &record.processes {
        ended = ended.and(kill_recorded(process).await);
    }
    let removed = remove_places(&PodPaths { dir: record.dir }, &record.groups).await;
    ended?;
    removed?;
    Ok(Record::remove(bundle)?)
}

/// The directory and the control groups. Unmounting may wait for disks: not on the runtime's thread.
async fn remove_places(paths: &PodPaths, groups: &[PathBuf]) -> Result<(), HostError> {
    let (paths, groups) = (paths.clone(), groups.to_vec());
    let remove = move || pod_dir::remove(&paths).and(cgroup::remove(&groups));
    let removed = spawn_blocking(remove).await;
    removed.unwrap_or(Err(HostError::Spawner))
}
