//! One process of a pod, as containerd sees it.
//!
//! ```text
//!            Start            ends
//! Created ----------> Running ------> Stopped --Delete--> (gone)
//!    |                   | ^             ^
//!    |                   v | Resume      |
//!    |                  Paused           |
//!    +---- Kill, or its VM dies ---------+
//! ```

use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use isopod_sandbox::{Exit, ProcessId, Status};
use tokio::sync::{self, watch};

use crate::io::{Copies, Paths, SharedCopies};

/// A container's init, or an exec.
pub struct Process {
    /// Its name.
    pub id: ProcessId,
    /// Its streams' names.
    pub paths: Paths,
    /// Held by a start until its event is queued, and by the exit while its event is queued: so that
    /// TaskExit never overtakes TaskStart, however short the process's life is.
    pub order: sync::Mutex<()>,
    /// Held by a delete: a second one finds nothing.
    pub deletion: sync::Mutex<()>,
    started: AtomicBool,
    exit: watch::Sender<Option<Exit>>,
    copies: SharedCopies,
}

impl Process {
    /// A created process with connected streams.
    pub fn new(id: ProcessId, paths: Paths, copies: Copies) -> Self {
        Self {
            id,
            paths,
            order: sync::Mutex::new(()),
            deletion: sync::Mutex::new(()),
            started: AtomicBool::new(false),
            exit: watch::Sender::new(None),
            copies: Mutex::new(Some(copies)),
        }
    }

    /// Whether it is a container's init.
    pub fn is_init(&self) -> bool {
        self.id.exec.is_empty()
    }

    /// What containerd calls it in events: init has the container's name.
    pub fn event_id(&self) -> &str {
        if self.is_init() {
            &self.id.container
        } else {
            &self.id.exec
        }
    }

    /// Start succeeded.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// Whether Start succeeded, ever.
    pub fn started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// The process ended: its input is closed and all waiters are answered.
    pub fn set_exit(&self, exit: Exit) {
        if let Some(copies) = self.copies().as_mut() {
            copies.stop_input();
        }
        self.exit.send_replace(Some(exit));
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| *exit)
    }

    /// Its place in its life; an exec shares its container's pause.
    pub fn status(&self, paused: bool) -> Status {
        match (self.exit(), self.started()) {
            (Some(_), _) => Status::Stopped,
            (None, true) if paused => Status::Paused,
            (None, true) => Status::Running,
            (None, false) => Status::Created,
        }
    }

    /// The running copies; none once a delete took them.
    pub fn copies(&self) -> MutexGuard<'_, Option<Copies>> {
        self.copies
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }
}
