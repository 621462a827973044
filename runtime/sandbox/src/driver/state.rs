//! The pod's containers and their processes.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tokio::sync::broadcast;

use super::process::Process;
use crate::{
    Error, Event, Exit, ProcessId,
    plan::{Demand, HostHooks},
    stdio::StreamNumbers,
};

/// All that the driver knows of the pod's inside.
pub(crate) struct State {
    /// Container -> exec id (empty: init) -> process.
    containers: BTreeMap<String, BTreeMap<String, Process>>,
    /// What runs on the host at a container's start and end.
    hooks: BTreeMap<String, Arc<HostHooks>>,
    /// What each container's limits ask of the machine.
    demands: BTreeMap<String, Demand>,
    /// The pod's first container: whose namespaces later ones join.
    first: Option<String>,
    pub streams: StreamNumbers,
    /// Why the guest is to be ended although it runs.
    pub given_up: Option<String>,
    events: broadcast::Sender<Event>,
}

impl State {
    pub fn new(events: broadcast::Sender<Event>) -> Self {
        Self {
            containers: BTreeMap::new(),
            hooks: BTreeMap::new(),
            demands: BTreeMap::new(),
            first: None,
            streams: StreamNumbers::default(),
            given_up: None,
            events,
        }
    }

    /// Tells everyone who listens.
    pub fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// A new process, being made. Its container must be there unless it is an init.
    pub fn insert(&mut self, id: &ProcessId) -> Result<(), Error> {
        if id.exec.is_empty() {
            if self.containers.contains_key(&id.container) {
                return Err(Error::AlreadyExists(format!(
                    "container {} already exists",
                    id.container
                )));
            }
            self.first.get_or_insert_with(|| id.container.clone());
        } else if self.find(id).is_ok() {
            return Err(Error::AlreadyExists(format!("{} already exists", name(id))));
        } else if !self.containers.contains_key(&id.container) {
            return Err(no_container(&id.container));
        }
        let processes = self.containers.entry(id.container.clone()).or_default();
        processes.insert(id.exec.clone(), Process::creating());
        Ok(())
    }

    /// Forgets a process; with an init, its container.
    pub fn remove(&mut self, id: &ProcessId) {
        if id.exec.is_empty() {
            self.containers.remove(&id.container);
            self.hooks.remove(&id.container);
            self.demands.remove(&id.container);
            if self.first.as_ref() == Some(&id.container) {
                self.first = None;
            }
        } else if let Some(processes) = self.containers.get_mut(&id.container) {
            processes.remove(&id.exec);
        }
    }

    /// What a container's limits ask of the machine from now on. Answers what they did.
    pub fn set_demand(&mut self, container: &str, demand: Demand) -> Demand {
        let before = self.demands.insert(container.to_owned(), demand);
        before.unwrap_or_default()
    }

    /// What a container's limits ask of the machine.
    pub fn demand(&self, container: &str) -> Demand {
        self.demands.get(container).copied().unwrap_or_default()
    }

    /// Of every container.
    pub fn demands(&self) -> impl Iterator<Item = &Demand> {
        self.demands.values()
    }

    /// A container is made: these are its hooks.
    pub fn keep_hooks(&mut self, container: &str, hooks: HostHooks) {
        self.hooks.insert(container.to_owned(), Arc::new(hooks));
    }

    /// The hooks of the container whose init `id` is.
    pub fn hooks_of_init(&self, id: &ProcessId) -> Option<Arc<HostHooks>> {
        let init = id.exec.is_empty();
        self.hooks.get(&id.container).filter(|_| init).cloned()
    }

    pub fn find(&self, id: &ProcessId) -> Result<&Process, Error> {
        let processes = self.containers.get(&id.container);
        let processes = processes.ok_or_else(|| no_container(&id.container))?;
        processes.get(&id.exec).ok_or_else(|| no_process(id))
    }

    pub fn find_mut(&mut self, id: &ProcessId) -> Result<&mut Process, Error> {
        let processes = self.containers.get_mut(&id.container);
        let processes = processes.ok_or_else(|| no_container(&id.container))?;
        processes.get_mut(&id.exec).ok_or_else(|| no_process(id))
    }

    /// The init of a container.
    pub fn init(&self, container: &str) -> Result<&Process, Error> {
        self.find(&ProcessId {
            container: container.to_owned(),
            exec: String::new(),
        })
    }

    pub fn processes_mut(&mut self, container: &str) -> impl Iterator<Item = &mut Process> {
        self.containers
            .get_mut(container)
            .into_iter()
            .flat_map(BTreeMap::values_mut)
    }

    /// The guest's pid of the first container's init, unless that is `container` or has ended.
    pub fn first_pid(&self, container: &str) -> Option<u32> {
        let first = self.first.as_deref().filter(|first| *first != container)?;
        let init = self.init(first).ok().filter(|init| !init.is_stopped())?;
        Some(init.pid()).filter(|pid| *pid != 0)
    }

    /// The guest says that a process ended.
    pub fn exited(&mut self, id: &ProcessId, exit: Exit) {
        match self.find_mut(id) {
            Ok(process) => {
                if process.exited(exit) {
                    self.tell(Event::Exited(id.clone(), exit));
                }
            }
            // It was deleted meanwhile, or the guest makes things up.
            Err(error) => tracing::debug!(%error, "exit of an unknown process"),
        }
    }

    /// The guest says that a container ran out of memory.
    pub fn out_of_memory(&mut self, container: String) {
        if self.containers.contains_key(&container) {
            self.tell(Event::OutOfMemory { container });
        }
    }

    /// The machine is gone, and with it every process.
    pub fn machine_ended(&mut self, now: SystemTime) {
        let mut ended = Vec::new();
        for (container, processes) in &mut self.containers {
            for (exec, process) in processes {
                if let Some(exit) = process.machine_ended(now) {
                    let id = ProcessId {
                        container: container.clone(),
                        exec: exec.clone(),
                    };
                    ended.push(Event::Exited(id, exit));
                }
            }
        }
        // Execs before the init of their container, as a container's end would have it.
        ended.reverse();
        ended.into_iter().for_each(|event| self.tell(event));
    }
}

/// A process by name, for people.
pub(crate) fn name(id: &ProcessId) -> String {
    if id.exec.is_empty() {
        format!("container {}", id.container)
    } else {
        format!("process {} of container {}", id.exec, id.container)
    }
}

fn no_container(container: &str) -> Error {
    Error::NotFound(format!("no container {container} in this pod"))
}

fn no_process(id: &ProcessId) -> Error {
    Error::NotFound(format!("no {}", name(id)))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
