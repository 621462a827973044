//! Creating containers and adding execs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use containerd_shim_protos::{
    api::Mount,
    events::task::{TaskCreate, TaskExecAdded, TaskIO, TaskOOM},
};
use isopod_sandbox::{
    ContainerRequest, Error, Event, ExecRequest, ProcessId, RootfsMount, SandboxRequest,
};
use isopod_settings::Settings;
use oci_spec::runtime::{Process as ProcessSpec, Spec};
use tokio::{
    select,
    sync::{broadcast, mpsc, oneshot},
};

use super::{Container, Presence, Process, Slot, Table, Tasks, detached, joined, lock};
use crate::{
    bundle::{self, ServerRecord},
    io::{Logged, Opened, Paths},
    pod::{Answer, Launch, Pod},
};

/// A container to create.
pub struct Create {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root filesystem.
    pub rootfs: Vec<RootfsMount>,
    /// The same, for the event.
    pub mounts: Vec<Mount>,
    /// Its init's streams.
    pub paths: Paths,
    /// The operator's settings.
    pub settings: Settings,
}

/// A process to add.
pub struct Exec {
    /// Its name.
    pub id: ProcessId,
    /// What to run.
    pub process: ProcessSpec,
    /// Its streams.
    pub paths: Paths,
}

/// A name that is taken back unless it is kept.
struct Reservation<'a, T> {
    table: &'a Table<T>,
    id: &'a str,
    kept: bool,
}

impl<'a, T> Reservation<'a, T> {
    fn new(table: &'a Table<T>, id: &'a str) -> Self {
        Self {
            table,
            id,
            kept: false,
        }
    }

    fn keep(mut self, value: Arc<T>) {
        self.kept = true;
        lock(self.table).insert(self.id.to_owned(), Slot::Ready(value));
    }
}

impl<T> Drop for Reservation<'_, T> {
    fn drop(&mut self) {
        if !self.kept {
            lock(self.table).remove(self.id);
        }
    }
}

/// Takes `id` in the table, unless it is taken.
fn reserve<T>(table: &Table<T>, id: &str, what: &str) -> Answer<()> {
    let mut table = lock(table);
    if table.contains_key(id) {
        return Err(Error::AlreadyExists(format!("{what} {id} already exists")));
    }
    table.insert(id.to_owned(), Slot::Reserved(None));
    Ok(())
}

/// Counts a container in the making, and not any more if it fails.
struct Arrival<'a, L: Launch> {
    tasks: &'a Tasks<L>,
    stays: bool,
}

impl<L: Launch> Drop for Arrival<'_, L> {
    fn drop(&mut self) {
        if !self.stays {
            self.tasks.departed();
        }
    }
}

impl<L: Launch> Tasks<L> {
    /// Creates a container, launching the pod for the first one. Answers the task's pid on the host.
    pub async fn create(self: &Arc<Self>, request: Create) -> Answer<u32> {
        // Before anything is spawned: a second create of the same name is refused at once.
        reserve(&self.containers, &request.id, "container")?;
        let refused = self.presence.send_if_modified(|p: &mut Presence| {
            p.containers += usize::from(!p.closing);
            !p.closing
        });
        if !refused {
            lock(&self.containers).remove(&request.id);
            return Err(Error::WrongState("the shim is ending".to_owned()));
        }
        let (this, id) = (self.clone(), request.id.clone());
        let creation = tokio::spawn(async move { this.create_reserved(request).await });
        if let Some(Slot::Reserved(abort)) = lock(&self.containers).get_mut(&id) {
            *abort = Some(creation.abort_handle());
        }
        let result = joined(creation.await);
        if let Err(error) = &result {
            tracing::error!(container = id, %error, "a container could not be created");
        }
        result
    }

    async fn create_reserved(self: Arc<Self>, request: Create) -> Answer<u32> {
        let id = request.id.clone();
        let mut arrival = Arrival {
            tasks: &self,
            stays: false,
        };
        let reservation = Reservation::new(&self.containers, &id);

        let spec = bundle::read_spec(&request.bundle)
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let opened = Opened::open(&request.paths, self.logged(&id)).await;
        let opened = opened.map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let pod = self
            .pod
            .get_or_try_init(|| self.launch(&request, &spec))
            .await?;
        record(pod, &request.bundle)?;
        let created = pod
            .create(ContainerRequest {
                id: id.clone(),
                bundle: request.bundle.clone(),
                spec,
                rootfs: request.rootfs,
                stdio: request.paths.request(),
            })
            .await?;
        let copies = opened.connect(created.stdio);

        let name = ProcessId {
            container: id.clone(),
            exec: String::new(),
        };
        let init = Arc::new(Process::new(name, request.paths.clone(), copies));
        self.events.publish(&TaskCreate {
            container_id: id.clone(),
            bundle: request.bundle.display().to_string(),
            rootfs: request.mounts,
            io: Some(TaskIO {
                stdin: request.paths.stdin,
                stdout: request.paths.stdout,
                stderr: request.paths.stderr,
                terminal: request.paths.terminal,
                ..TaskIO::default()
            })
            .into(),
            pid: pod.host_pid(),
            ..TaskCreate::default()
        });
        reservation.keep(Arc::new(Container {
            id: id.clone(),
            bundle: request.bundle,
            init: init.clone(),
            execs: Mutex::default(),
            paused: AtomicBool::new(false),
        }));
        arrival.stays = true;
        tracing::info!(container = id, guest_pid = created.pid, "container created");
        self.watch_exit(pod.clone(), init);
        Ok(pod.host_pid())
    }

    async fn launch(self: &Arc<Self>, first: &Create, spec: &Spec) -> Answer<L::Pod> {
        let pod = self
            .launcher
            .launch(SandboxRequest {
                namespace: self.namespace.clone(),
                id: self.id.clone(),
                bundle: first.bundle.clone(),
                settings: first.settings.clone(),
                spec: spec.clone(),
            })
            .await?;
        if let Some(barriers) = lock(&self.barriers_end).take() {
            tokio::spawn(self.clone().watch_memory(pod.events(), barriers));
        }
        Ok(pod)
    }

    /// Passes on what happens unasked. An exit waits at a barrier until the out-of-memory event that
    /// explains it has gone ahead.
    async fn watch_memory(
        self: Arc<Self>,
        mut events: broadcast::Receiver<Event>,
        mut barriers: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        loop {
            select! {
                biased;
                event = events.recv() => match event {
                    Ok(Event::OutOfMemory { container }) => {
                        tracing::warn!(container, "the guest killed a process for lack of memory");
                        self.events.publish(&TaskOOM {
                            container_id: container,
                            ..TaskOOM::default()
                        });
                    }
                    Ok(Event::VmGone(reason)) => tracing::error!(reason, "the VM ended unasked"),
                    Ok(Event::Exited(..)) => {}
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "events of the guest were missed");
                    }
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                barrier = barriers.recv() => match barrier {
                    Some(barrier) => {
                        let _ = barrier.send(());
                    }
                    None => break,
                },
            }
        }
    }

    fn logged<'a>(&'a self, container: &'a str) -> Logged<'a> {
        Logged {
            namespace: &self.namespace,
            container,
        }
    }

    /// Registers an exec.
    pub async fn exec(self: &Arc<Self>, request: Exec) -> Answer<()> {
        let container = self.container(&request.id.container)?;
        if container.init.exit().is_some() {
            let text = format!("container {} has ended", container.id);
            return Err(Error::WrongState(text));
        }
        reserve(&container.execs, &request.id.exec, "exec")?;
        let this = self.clone();
        detached(async move {
            let id = request.id.clone();
            let reservation = Reservation::new(&container.execs, &id.exec);
            let opened = Opened::open_outputs(&request.paths, this.logged(&id.container)).await;
            let opened = opened.map_err(|error| Error::InvalidArgument(error.to_string()))?;
            let asked = ExecRequest {
                process: request.process,
                stdio: request.paths.request(),
            };
            let stdio = this.pod()?.exec(id.clone(), asked).await?;
            let copies = opened.connect(stdio);
            let process = Process::new(id.clone(), request.paths, copies);
            this.events.publish(&TaskExecAdded {
                container_id: id.container.clone(),
                exec_id: id.exec.clone(),
                ..TaskExecAdded::default()
            });
            reservation.keep(Arc::new(process));
            Ok(())
        })
        .await
    }
}

/// containerd removes each container's bundle with it; whichever is left when this server is killed
/// must lead `delete` to the server and to the pod.
fn record<P: Pod>(pod: &P, bundle: &Path) -> Answer<()> {
    pod.record_in(bundle)?;
    let server = ServerRecord::of(std::process::id()).and_then(|mut record| {
        record.task_pid = pod.host_pid();
        record.write(bundle)
    });
    server.map_err(|error| Error::Failed(format!("recording in {}: {error}", bundle.display())))
}
