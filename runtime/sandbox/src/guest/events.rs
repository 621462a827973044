//! The agent's events, followed by long polls. The agent keeps what is not acknowledged, so a lost
//! connection loses none.

use std::{sync::Arc, time::Duration};

use isopod_protocol::agent::event::Kind;
use tokio::sync::mpsc;

use super::{Guest, GuestError, convert};
use crate::{Exit, ProcessId};

/// How often a lost connection is made again, and how long we wait before.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// What the guest tells unasked.
#[derive(Debug)]
pub(crate) enum GuestEvent {
    /// A process ended.
    Exited(ProcessId, Exit),
    /// The kernel killed something in this container.
    OutOfMemory(String),
    /// The agent cannot be reached any more.
    Lost(GuestError),
}

/// Sends the agent's events until it is lost or nobody listens.
pub(crate) async fn follow(guest: Arc<Guest>, tell: mpsc::Sender<GuestEvent>) {
    let mut after = 0;
    let mut failures = 0;
    loop {
        let error = match guest.events(after).await {
            Ok(events) => {
                failures = 0;
                for event in events {
                    // The agent sends in order; what it repeats has been told already.
                    if event.sequence <= after {
                        continue;
                    }
                    after = event.sequence;
                    let told = match event.kind {
                        Some(Kind::Exited(exited)) => {
                            let id = ProcessId {
                                container: event.container_id,
                                exec: exited.exec_id,
                            };
                            GuestEvent::Exited(id, convert::exit(&exited.exit))
                        }
                        Some(Kind::OutOfMemory(_)) => GuestEvent::OutOfMemory(event.container_id),
                        _ => continue,
                    };
                    if tell.send(told).await.is_err() {
                        return;
                    }
                }
                continue;
            }
            // A guest that is slow or stopped is not lost. Who cannot wait for it kills it.
            Err(GuestError::TimedOut(_)) if !tell.is_closed() => continue,
            Err(error) => error,
        };
        failures += 1;
        if failures > ATTEMPTS {
            let _ = tell.send(GuestEvent::Lost(error)).await;
            return;
        }
        tracing::debug!(%error, failures, "event poll failed");
        tokio::time::sleep(PAUSE).await;
        if let Err(error) = guest.reconnect().await {
            tracing::debug!(%error, "reconnect failed");
        }
        if tell.is_closed() {
            return;
        }
    }
}
