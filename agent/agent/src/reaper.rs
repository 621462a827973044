//! The one place that collects exits: of containers, of execs, and of every orphan in the guest.

use std::io;

use rustix::{
    io::Errno,
    process::{WaitOptions, wait},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{clock, pod::Pod, process::Exit};

/// Listens for SIGCHLD from its making on.
pub(crate) struct Reaper {
    children: Signal,
}

impl Reaper {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            children: signal(SignalKind::child())?,
        })
    }

    /// Collects for ever. Signals coalesce, so each means "until there are no more".
    pub(crate) async fn run(mut self, pod: &Pod) {
        loop {
            collect(pod);
            if self.children.recv().await.is_none() {
                // The runtime ends.
                return;
            }
        }
    }
}

fn collect(pod: &Pod) {
    loop {
        let (pid, status) = match wait(WaitOptions::NOHANG) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(Errno::CHILD) => return,
            Err(Errno::INTR) => continue,
            Err(e) => {
                crate::log::error(&format!("wait for child processes: {e}"));
                return;
            }
        };
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            // Stopped or continued, which was not asked for.
            (None, None) => continue,
        };
        pod.ended(Exit {
            pid: pid.as_raw_nonzero().get(),
            code: u32::try_from(code).unwrap_or(255),
            at: clock::now(),
        });
    }
}
