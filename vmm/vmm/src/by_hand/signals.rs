//! What a machine on the command line is asked for while it runs: by signals, as it has no other ear.
//!
//! | signal | where | what |
//! |---|---|---|
//! | SIGINT, SIGTERM | `--save-to` | the machine is saved, and ends |
//! | SIGUSR1 | `--memory-max` | the guest is asked to give back all memory that was added |
//! | SIGUSR2 | `--memory-max` | it is given all of it again |
//!
//! Elsewhere they do what they do to any process: they end it.

use std::sync::Arc;

use anyhow::Context;
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

/// What has come to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The guest runs no further, by its own doing.
    Ended,
    /// The machine is to be saved.
    Save,
    /// The memory that was added is to come back.
    TakeMemory,
    /// It is to be the guest's again.
    GiveMemory,
}

/// Which signals are caught.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Those that ask for a saved machine.
    pub save: bool,
    /// Those that move memory.
    pub memory: bool,
}

/// Waits for the guest's end, and for signals.
pub struct Asked {
    runtime: Runtime,
    /// SIGINT and SIGTERM, if they are caught.
    save: Option<[Signal; 2]>,
    /// SIGUSR1 and SIGUSR2, likewise.
    memory: Option<[Signal; 2]>,
    ended: Arc<Notify>,
}

impl Asked {
    /// Catches signals from now on.
    pub fn new(heard: Heard) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("start a runtime")?;
        let guard = runtime.enter();
        let pair = |wanted: bool, kinds: [SignalKind; 2]| {
            let [one, other] = kinds.map(|kind| wanted.then(|| signal(kind)).transpose());
            let both = one.and_then(|one| Ok(one.zip(other?)));
            let both = both.context("catch a signal")?;
            anyhow::Ok(both.map(|(one, other)| [one, other]))
        };
        let save = pair(
            heard.save,
            [SignalKind::interrupt(), SignalKind::terminate()],
        )?;
        let memory = pair(
            heard.memory,
            [SignalKind::user_defined1(), SignalKind::user_defined2()],
        )?;
        drop(guard);
        Ok(Self {
            runtime,
            save,
            memory,
            ended: Arc::default(),
        })
    }

    /// To be called when the guest runs no further.
    pub fn on_end(&self) -> Box<dyn FnOnce() + Send> {
        let ended = Arc::clone(&self.ended);
        Box::new(move || ended.notify_one())
    }

    /// The next thing.
    pub fn next(&mut self) -> Word {
        let Self {
            runtime,
            save,
            memory,
            ended,
        } = self;
        runtime.block_on(async {
            tokio::select! {
                // A guest that has ended cannot be saved.
                biased;
                () = ended.notified() => Word::Ended,
                _ = either(save) => Word::Save,
                first = either(memory) => match first {
                    true => Word::TakeMemory,
                    false => Word::GiveMemory,
                },
            }
        })
    }
}

/// Whether it is the first of two; never, if they are not caught.
async fn either(signals: &mut Option<[Signal; 2]>) -> bool {
    match signals {
        None => std::future::pending().await,
        Some([first, second]) => tokio::select! {
            _ = first.recv() => true,
            _ = second.recv() => false,
        },
    }
}
