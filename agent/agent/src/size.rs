//! Processors and memory that the machine has, into use and out of it, as the host asks.
//!
//! Into use: all of it, or an error. Out of use: as far as it goes within a bound, the highest first; what
//! containers need stays. Both work on what the kernel shows now, so that a repeated or an abandoned call
//! does no harm.

mod memory;
mod processors;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use isopod_protocol::{
    agent::{SetSizeRequest, SetSizeResponse},
    limits,
};
use nix::sys::{pthread, signal::Signal};
use tokio::{
    signal::unix::{self, SignalKind},
    sync::{Mutex, oneshot},
};

use crate::fault::{Fault, act};

/// What the machine has.
#[derive(Debug)]
pub(crate) struct System {
    cpu: PathBuf,
    memory: PathBuf,
    /// What is free is asked here.
    meminfo: PathBuf,
    /// One at a time.
    turn: Mutex<()>,
}

/// Why what was asked for is not so.
#[derive(Debug, thiserror::Error)]
enum SizeError {
    #[error("{0}")]
    Request(String),
    #[error("{act} {path}: {source}")]
    Access {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path}: {text:?} is not what it should be")]
    Text { path: PathBuf, text: String },
}

impl From<SizeError> for Fault {
    fn from(error: SizeError) -> Self {
        match error {
            SizeError::Request(why) => Self::Argument(why),
            error => act("change the machine's size", error),
        }
    }
}

impl System {
    /// As the kernel shows it below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            cpu: root.join("cpu"),
            memory: root.join("memory"),
            meminfo: PathBuf::from("/proc/meminfo"),
            turn: Mutex::default(),
        }
    }

    /// Answers a call.
    pub(crate) async fn set_size(
        self: Arc<Self>,
        request: SetSizeRequest,
    ) -> Result<SetSizeResponse, Fault> {
        let _turn = self.turn.lock().await;
        let system = Arc::clone(&self);
        let more = request.clone();
        let grown = apart(None, move || system.grow(&more)).await?;
        grown?;
        let until = Instant::now() + limits::SHRINK;
        let system = Arc::clone(&self);
        let shrunk = apart(Some(limits::SHRINK), move || system.shrink(&request, until));
        Ok(shrunk.await??)
    }

    fn grow(&self, request: &SetSizeRequest) -> Result<(), SizeError> {
        for range in memory::ranges(&request.used, self)? {
            self.use_memory(range)?;
        }
        self.bring_online(request.cpus)
    }

    fn shrink(
        &self,
        request: &SetSizeRequest,
        until: Instant,
    ) -> Result<SetSizeResponse, SizeError> {
        let used = memory::ranges(&request.used, self)?;
        let unused = memory::ranges(&request.unused, self)?;
        let mut kept = self.take_offline(request.cpus);
        for range in unused.iter().rev() {
            kept = kept.and(self.leave_memory(range.clone(), until));
        }
        let mut response = SetSizeResponse::new();
        response.kept = kept.err().unwrap_or_default();
        response.cpus = self.online()?;
        for range in used.into_iter().chain(unused) {
            response.added_bytes = response.added_bytes.saturating_add(self.in_use(range));
        }
        Ok(response)
    }
}

/// Runs what blocks on a thread of its own. After `limit` a system call that it is in is interrupted.
async fn apart<T: Send + 'static>(
    limit: Option<Duration>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    use std::os::unix::thread::JoinHandleExt as _;
    let failed = |e: io::Error| act("change the machine's size", e);
    interruptible().map_err(failed)?;
    let (tell, mut told) = oneshot::channel();
    let thread = std::thread::Builder::new().name("size".to_owned());
    let thread = thread.spawn(move || drop(tell.send(work())));
    let thread = thread.map_err(failed)?;
    let mut pause = limit.unwrap_or(Duration::MAX);
    loop {
        match tokio::time::timeout(pause, &mut told).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(_)) => return Err(act("change the machine's size", "its thread has ended")),
            Err(_) => {
                // It may be between two calls: until it hears.
                pause = Duration::from_millis(100);
                let _ = pthread::pthread_kill(thread.as_pthread_t(), Signal::SIGUSR1);
            }
        }
    }
}

/// A signal that interrupts must be handled (the kernel tells the taking of a block out of use about it in any
/// case, a handler that restarts calls or not); there is nothing to be done about it.
fn interruptible() -> io::Result<()> {
    static HANDLED: OnceLock<unix::Signal> = OnceLock::new();
    if HANDLED.get().is_none() {
        let _ = HANDLED.set(unix::signal(SignalKind::user_defined1())?);
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, SizeError> {
    std::fs::read_to_string(path).map_err(|source| SizeError::Access {
        act: "read",
        path: path.to_owned(),
        source,
    })
}

/// One write: an interrupted one is not tried again.
fn write(path: &Path, value: &str) -> Result<(), SizeError> {
    let written = std::fs::File::options()
        .write(true)
        .open(path)
        .and_then(|file| Ok(rustix::io::write(&file, value.as_bytes())?));
    match written {
        Ok(_) => Ok(()),
        Err(source) => Err(SizeError::Access {
            act: "write",
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
#[path = "size_tests.rs"]
mod tests;
