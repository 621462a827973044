//! The pod's containers and their lives: all that the task service knows, without its protocol.
//!
//! ```text
//! service -> Tasks: create -> launch the pod once, create in it, queue TaskCreate, watch for the end
//!                   start  -> start in it, queue TaskStart
//!                   (end)  -> queue TaskExit, answer waiters
//!                   delete -> drain output, delete in it, queue TaskDelete
//! ```
//! The table's locks are never held across an await; a call on one container never waits for another's.
//! Calls that change something run in tasks of their own: when containerd's connection drops, its calls
//! are dropped with it, and a half-made container must not be.

mod control;
mod create;
mod life;
mod process;

use std::{
    collections::HashMap,
    future::Future,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use isopod_sandbox::{Error, ProcessId};
use tokio::{
    sync::{OnceCell, mpsc, oneshot, watch},
    task::AbortHandle,
    time,
};

pub use self::{
    create::{Create, Exec},
    process::Process,
};
use crate::{
    events::Events,
    pod::{Answer, Launch},
};

/// A creation that containerd gave up gets so long to undo itself when the shim ends.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);
/// For the last events when the shim ends.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

/// All containers of one pod.
pub struct Tasks<L: Launch> {
    launcher: L,
    namespace: String,
    /// The pod's id.
    id: String,
    /// The bundle that this server was started for.
    bundle: PathBuf,
    pod: OnceCell<L::Pod>,
    containers: Table<Container>,
    events: Arc<Events>,
    presence: watch::Sender<Presence>,
    /// Asks the watcher of out-of-memory events to pass on what has happened so far.
    barriers: mpsc::Sender<oneshot::Sender<()>>,
    barriers_end: Mutex<Option<mpsc::Receiver<oneshot::Sender<()>>>>,
}

/// Whether there is something to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Containers, those in the making included.
    pub containers: usize,
    /// A shutdown began: nothing is created any more.
    pub closing: bool,
    /// The shutdown is done: the process may end.
    pub closed: bool,
}

/// A created container.
pub struct Container {
    id: String,
    bundle: PathBuf,
    init: Arc<Process>,
    execs: Table<Process>,
    paused: AtomicBool,
}

/// Names, taken or being taken.
type Table<T> = Mutex<HashMap<String, Slot<T>>>;

enum Slot<T> {
    /// In the making; aborting the task, once there is one, undoes it.
    Reserved(Option<AbortHandle>),
    Ready(Arc<T>),
}

impl<L: Launch> Tasks<L> {
    /// A pod without containers; the first create launches it.
    pub fn new(launcher: L, namespace: &str, id: &str, bundle: PathBuf, events: Events) -> Self {
        let (barriers, end) = mpsc::channel(16);
        Self {
            launcher,
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            bundle,
            pod: OnceCell::new(),
            containers: Mutex::default(),
            events: Arc::new(events),
            presence: watch::Sender::new(Presence::default()),
            barriers,
            barriers_end: Mutex::new(Some(end)),
        }
    }

    /// The queue of events, for its sender.
    pub fn events(&self) -> Arc<Events> {
        self.events.clone()
    }

    /// Tells of arrivals, departures, and the end.
    pub fn presence(&self) -> watch::Receiver<Presence> {
        self.presence.subscribe()
    }

    fn container(&self, id: &str) -> Answer<Arc<Container>> {
        match lock(&self.containers).get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            Some(Slot::Reserved(_)) => {
                Err(Error::NotFound(format!("container {id} is being created")))
            }
            None => Err(Error::NotFound(format!("container {id} does not exist"))),
        }
    }

    fn process(&self, id: &ProcessId) -> Answer<(Arc<Container>, Arc<Process>)> {
        let container = self.container(&id.container)?;
        if id.exec.is_empty() {
            let init = container.init.clone();
            return Ok((container, init));
        }
        let exec = match lock(&container.execs).get(&id.exec) {
            Some(Slot::Ready(exec)) => exec.clone(),
            _ => {
                let text = format!(
                    "exec {} in container {} does not exist",
                    id.exec, id.container
                );
                return Err(Error::NotFound(text));
            }
        };
        Ok((container, exec))
    }

    fn pod(&self) -> Answer<&L::Pod> {
        let none = || Error::NotFound("the pod has not been started".to_owned());
        self.pod.get().ok_or_else(none)
    }

    /// Ends the pod unless it has containers; `now` ends it in any case. What the runc shim does:
    /// containerd asks after each delete, and only the last one counts.
    pub async fn shutdown(self: &Arc<Self>, now: bool) -> Answer<()> {
        let in_use = lock(&self.containers)
            .values()
            .any(|slot| matches!(slot, Slot::Ready(_)));
        if in_use && !now {
            return Ok(());
        }
        let this = self.clone();
        detached(async move {
            this.close().await;
            Ok(())
        })
        .await
    }

    /// Ends the pod and all that it owns. Idempotent; the second caller waits for the first.
    pub async fn close(&self) {
        let first = self
            .presence
            .send_if_modified(|p| !std::mem::replace(&mut p.closing, true));
        if !first {
            let mut presence = self.presence.subscribe();
            let _ = presence.wait_for(|presence| presence.closed).await;
            return;
        }
        for slot in lock(&self.containers).values() {
            if let Slot::Reserved(Some(creation)) = slot {
                creation.abort();
            }
        }
        let mut presence = self.presence.subscribe();
        let undone = presence.wait_for(|presence| presence.containers == 0);
        let _ = time::timeout(ABORT_PATIENCE, undone).await;
        let result = match self.pod.get() {
            Some(pod) => crate::pod::Pod::shutdown(pod).await,
            // An aborted launch has undone itself; what it could not is in its record.
            None => self.launcher.clean_up(&self.bundle).await,
        };
        if let Err(error) = result {
            tracing::error!(%error, "the pod did not end in order");
        }
        self.events.flush(FLUSH_PATIENCE).await;
        self.presence.send_modify(|p| p.closed = true);
    }

    /// Returns when there was no container for as long as `patience`.
    pub async fn idle(&self, patience: Duration) {
        let mut presence = self.presence.subscribe();
        loop {
            if presence.wait_for(|p| p.containers == 0).await.is_err() {
                return;
            }
            let arrival = presence.wait_for(|p| p.containers > 0);
            if time::timeout(patience, arrival).await.is_err() {
                return;
            }
        }
    }
}

/// Runs `work` to its end even when the caller goes away.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Answer<T>> + Send + 'static,
) -> Answer<T> {
    joined(tokio::spawn(work).await)
}

fn joined<T>(result: Result<Answer<T>, tokio::task::JoinError>) -> Answer<T> {
    result.unwrap_or_else(|error| {
        Err(if error.is_cancelled() {
            Error::Failed("given up: the shim ends".to_owned())
        } else {
            Error::Failed(format!("the shim failed: {error}"))
        })
    })
}

/// A poisoned table is still a table: entries change in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Container {
    fn paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
