//! All containers of the guest, and which process is whose.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use isopod_container::{
    Also, NamespaceKind,
    cgroup::{
        Cgroup, Tree,
        devices::{self, Attached},
        limits,
    },
};
use oci_spec::runtime::{LinuxResources, LinuxSeccomp, Process as ProcessSpec};

use crate::{
    Place,
    events::Events,
    fault::Fault,
    oom::OomWatch,
    process::{Exit, Process},
    run::Waiting,
    stdio::Wiring,
    streams::Streams,
};

/// An additional process, registered and maybe running.
#[derive(Debug)]
pub(crate) struct Exec {
    pub process: Arc<Process>,
    /// What to run; taken by the start.
    order: Mutex<Option<(ProcessSpec, Wiring)>>,
}

impl Exec {
    pub(crate) fn new(process: Process, spec: ProcessSpec, wiring: Wiring) -> Self {
        Self {
            process: Arc::new(process),
            order: Mutex::new(Some((spec, wiring))),
        }
    }

    /// What to run, to whoever asks first.
    pub(crate) fn take_order(&self) -> Option<(ProcessSpec, Wiring)> {
        self.order
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// A container that is made.
#[derive(Debug)]
pub(crate) struct Container {
    pub init: Arc<Process>,
    pub cgroup: Cgroup,
    /// Its device rules, for an update to replace.
    pub devices: Mutex<Attached>,
    /// Its init, for joining its namespaces.
    pub pidfd: OwnedFd,
    /// Its processes die with its init. False when it shares the pod's or the guest's pid namespace.
    pub own_pid_namespace: bool,
    /// Execs run under it too.
    pub seccomp: Option<LinuxSeccomp>,
    /// What execs join besides.
    pub also: Also,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    waiting: Mutex<Option<Waiting>>,
    kills_told: AtomicU64,
}

impl Container {
    pub(crate) fn new(
        init: Arc<Process>,
        cgroup: Cgroup,
        devices: Attached,
        pidfd: OwnedFd,
        own_pid_namespace: bool,
        seccomp: Option<LinuxSeccomp>,
        also: Also,
    ) -> Self {
        Self {
            init,
            cgroup,
            devices: Mutex::new(devices),
            pidfd,
            own_pid_namespace,
            seccomp,
            also,
            execs: Mutex::default(),
            waiting: Mutex::default(),
            kills_told: AtomicU64::new(0),
        }
    }

    /// Writes new limits; new device rules take the place of the old ones at once.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<(), Fault> {
        let settings = limits::plan(resources)?;
        let rules = resources.devices().as_deref();
        let rules = rules.filter(|rules| !rules.is_empty());
        let rules = rules.map(devices::compile).transpose()?;
        if let Some(memory) = resources.memory() {
            let usage = self.cgroup.read("memory.current")?.unwrap_or_default();
            limits::check_usage(memory, usage.trim().parse().unwrap_or(0))?;
        }
        self.cgroup.set(&settings)?;
        if let Some(rules) = rules {
            let directory = self.cgroup.open()?;
            let mut attached = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
            *attached = devices::attach(directory.as_fd(), &rules, Some(&attached))?;
        }
        Ok(())
    }

    /// Its init before the start.
    pub(crate) fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of out-of-memory kills that were not told yet.
    pub(crate) fn look_for_kills(&self, events: &Events) {
        let kills = self.cgroup.oom_kills().unwrap_or(0);
        if self.kills_told.fetch_max(kills, Ordering::Relaxed) < kills {
            events.out_of_memory(&self.init.container, kills);
        }
    }
}

#[derive(Clone, Debug)]
enum Slot {
    /// The name is taken, the container is in the making.
    Making,
    Made(Arc<Container>),
}

#[derive(Debug, Default)]
struct Table {
    containers: HashMap<String, Slot>,
    /// Every process that runs under a name, by pid, until it is reaped.
    processes: HashMap<i32, Arc<Process>>,
    /// Namespaces of the pod: those of the first container that has its own.
    shared: HashMap<&'static str, Arc<OwnedFd>>,
}

/// The guest's containers.
pub(crate) struct Pod {
    pub streams: Streams,
    pub events: Events,
    pub tree: Tree,
    pub anchor: PathBuf,
    pub oom: OomWatch,
    table: Mutex<Table>,
}

fn name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Pid => "pid",
        NamespaceKind::User => "user",
    }
}

impl Pod {
    pub(crate) fn new(place: &Place) -> std::io::Result<Self> {
        Ok(Self {
            oom: OomWatch::new()?,
            streams: Streams::default(),
            events: Events::default(),
            tree: Tree::new(&place.cgroups),
            anchor: place.anchor.clone(),
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name for a container in the making.
    pub(crate) fn reserve(&self, id: &str) -> Result<(), Fault> {
        let mut table = self.table();
        if table.containers.contains_key(id) {
            return Err(Fault::Exists {
                subject: "container",
                id: id.to_owned(),
            });
        }
        table.containers.insert(id.to_owned(), Slot::Making);
        Ok(())
    }

    /// The container is made.
    pub(crate) fn insert(&self, id: &str, container: Arc<Container>) {
        self.table()
            .containers
            .insert(id.to_owned(), Slot::Made(container));
    }

    /// Gives a name back.
    pub(crate) fn remove(&self, id: &str) {
        self.table().containers.remove(id);
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Fault> {
        match self.table().containers.get(id) {
            Some(Slot::Made(container)) => Ok(Arc::clone(container)),
            _ => Err(Fault::NoContainer(id.to_owned())),
        }
    }

    /// All that are made.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        let table = self.table();
        let made = table.containers.values().filter_map(|slot| match slot {
            Slot::Made(container) => Some(Arc::clone(container)),
            Slot::Making => None,
        });
        made.collect()
    }

    /// The process (container, exec); an empty exec is init.
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<Arc<Process>, Fault> {
        let container = self.container(id)?;
        if exec.is_empty() {
            return Ok(Arc::clone(&container.init));
        }
        self.exec(id, exec).map(|exec| Arc::clone(&exec.process))
    }

    pub(crate) fn exec(&self, id: &str, exec: &str) -> Result<Arc<Exec>, Fault> {
        let container = self.container(id)?;
        let found = container.execs().get(exec).cloned();
        found.ok_or_else(|| Fault::NoProcess {
            container: id.to_owned(),
            exec: exec.to_owned(),
        })
    }

    /// From now on the exit of `pid` is the process's. Called before it can be reaped.
    pub(crate) fn register(&self, pid: i32, process: &Arc<Process>) {
        process.set_pid(pid);
        self.table().processes.insert(pid, Arc::clone(process));
    }

    /// A process was reaped; orphans of containers are nobody's.
    pub(crate) fn ended(&self, exit: Exit) {
        let Some(process) = self.table().processes.remove(&exit.pid) else {
            return;
        };
        if let Ok(container) = self.container(&process.container) {
            // Killed for lack of memory: the reason comes before the exit.
            container.look_for_kills(&self.events);
            if process.exec.is_empty()
                && !container.own_pid_namespace
                && let Err(e) = container.cgroup.kill()
            {
                crate::log::error(&format!("end container {:?}: {e}", process.container));
            }
        }
        process.end(exit, &self.events);
    }

    /// The pod's namespace of a kind.
    pub(crate) fn shared(&self, kind: NamespaceKind) -> Option<Arc<OwnedFd>> {
        self.table().shared.get(name(kind)).cloned()
    }

    /// Keeps the namespaces that a container's init made, if it is the first.
    pub(crate) fn share(&self, pid: i32, kinds: &[NamespaceKind]) {
        let mut table = self.table();
        for kind in kinds {
            let name = name(*kind);
            if table.shared.contains_key(name) {
                continue;
            }
            match std::fs::File::open(format!("/proc/{pid}/ns/{name}")) {
                Ok(file) => {
                    table.shared.insert(name, Arc::new(file.into()));
                }
                Err(e) => crate::log::warning(&format!("keep the pod's {name} namespace: {e}")),
            }
        }
    }
}
