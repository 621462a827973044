//! What a start that takes long is at: a line every ten seconds, from the shim's log.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const PERIOD: Duration = Duration::from_secs(10);

/// Tells until it is dropped. A start that is done within ten seconds has nothing told of it.
pub struct Progress(Option<(Sender<()>, JoinHandle<()>)>);

impl Progress {
    /// Follows the log at this path.
    pub fn start(log: PathBuf) -> Self {
        let (done, told) = mpsc::channel();
        let began = Instant::now();
        let thread = thread::spawn(move || {
            while told.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                println!("    {:>4} s: {}", began.elapsed().as_secs(), stage(&log));
            }
        });
        Self(Some((done, thread)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((done, thread)) = self.0.take() {
            drop(done);
            let _ = thread.join();
        }
    }
}

/// What has been logged last says what comes next.
fn stage(log: &Path) -> &'static str {
    let log = fs::read_to_string(log).unwrap_or_default();
    let stages = [
        (
            "pod is ready",
            "the agent makes the container in the running guest",
        ),
        ("the guest runs", "the guest's kernel boots"),
        ("msg=starting", "the virtual machine is put together"),
    ];
    let reached = stages.into_iter().find(|(logged, _)| log.contains(logged));
    reached.map_or("containerd starts the shim", |(_, stage)| stage)
}
