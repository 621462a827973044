//! A machine that is saved at the end, and one that goes on from there.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, ensure};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

use crate::snapshot::{Files, Saved};

const STATE: &str = "state";
const MEMORY: &str = "memory";

/// What was saved to a directory.
pub fn open(directory: &Path) -> anyhow::Result<Saved> {
    let open = |name| {
        let path = directory.join(name);
        File::open(&path).with_context(|| path.display().to_string())
    };
    let saved = Saved::read(&open(STATE)?, open(MEMORY)?);
    saved.with_context(|| format!("--restore-from {}", directory.display()))
}

/// The files that a machine will be saved to; what is in them is written over then.
pub fn make(directory: &Path, restored: Option<&Path>) -> anyhow::Result<Files> {
    let told = || format!("--save-to {}", directory.display());
    fs::create_dir_all(directory).with_context(told)?;
    if let Some(restored) = restored {
        let same = same_directory(directory, restored).with_context(told)?;
        // The machine's memory is mapped from there.
        ensure!(!same, "{}: the machine is restored from it", told());
    }
    let open = |name| {
        let path = directory.join(name);
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path);
        file.with_context(|| path.display().to_string())
    };
    Files::new(open(STATE)?, open(MEMORY)?, restored.is_some())
}

fn same_directory(one: &Path, other: &Path) -> std::io::Result<bool> {
    let id = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino()));
    Ok(id(one)? == id(other)?)
}

/// Why a machine is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The guest's doing.
    Guest,
    /// SIGINT or SIGTERM.
    Signal,
}

/// Waits for a machine's end, or for signals that ask for it.
pub struct Asked {
    runtime: Runtime,
    /// SIGINT and SIGTERM, if they are caught.
    signals: Option<[Signal; 2]>,
    ended: Arc<Notify>,
}

impl Asked {
    /// Catches signals if that is wanted.
    pub fn new(signals: bool) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("start a runtime")?;
        let guard = runtime.enter();
        let catch = |kind| signal(kind).context("catch a signal");
        let signals = match signals {
            true => Some([
                catch(SignalKind::interrupt())?,
                catch(SignalKind::terminate())?,
            ]),
            false => None,
        };
        drop(guard);
        Ok(Self {
            runtime,
            signals,
            ended: Arc::default(),
        })
    }

    /// To be called when the guest runs no further.
    pub fn on_end(&self) -> Box<dyn FnOnce() + Send> {
        let ended = Arc::clone(&self.ended);
        Box::new(move || ended.notify_one())
    }

    /// Why the machine is at its end, when it is.
    pub fn wait(&mut self) -> Why {
        let Self {
            runtime,
            signals,
            ended,
        } = self;
        runtime.block_on(async {
            match signals {
                None => ended.notified().await,
                Some([interrupt, terminate]) => tokio::select! {
                    // A guest that has ended cannot be saved.
                    biased;
                    () = ended.notified() => {}
                    _ = interrupt.recv() => return Why::Signal,
                    _ = terminate.recv() => return Why::Signal,
                },
            }
            Why::Guest
        })
    }
}
