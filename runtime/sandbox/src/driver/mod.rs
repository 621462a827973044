//! One task owns a pod's state. Calls go down, events come up, and nothing below holds a reference
//! upward. What takes time runs beside it as an *effect*: a future that ends in a change of state,
//! which the task applies. The task itself never waits for a guest.
//!
//! ```text
//! Alive --machine or file server ended--> Gone (told: an exit of every process, then VmGone)
//!   |                                       |
//!   +--------shutdown---> Ending ---------> Gone (removed)
//! ```

mod call;
mod clock;
mod effect;
mod growth;
mod operation;
mod process;
mod state;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{broadcast, mpsc, watch};

pub(crate) use call::{Call, Reply};

use crate::{
    Error, Event,
    guest::{self, Guest, GuestEvent},
    launch::Ready,
    pod_host::PodHost,
};
use clock::Clock;
use effect::{Effect, Effects};
use growth::Growth;
use state::State;

/// How long effects may take to notice that their machine is gone.
const DRAIN: Duration = Duration::from_secs(30);
/// A lost agent often means a machine that is about to end, and that end explains more.
const EXPLAIN: Duration = Duration::from_secs(3);

/// The task's own.
pub(crate) struct Driver {
    host: PodHost,
    guest: Arc<Guest>,
    state: State,
    growth: Arc<Growth>,
    calls: mpsc::Receiver<Call>,
    effects: FuturesUnordered<Effect>,
    guest_events: mpsc::Receiver<GuestEvent>,
    clock: Clock,
    /// Why the machine is gone, for effects that wait for it.
    gone: watch::Sender<Option<String>>,
}

impl Driver {
    /// Takes a pod that is ready; `run` drives it.
    pub fn new(
        ready: Ready,
        calls: mpsc::Receiver<Call>,
        events: broadcast::Sender<Event>,
    ) -> Self {
        let Ready { host, guest, .. } = ready;
        let (tell, guest_events) = mpsc::channel(64);
        tokio::spawn(guest::follow(guest.clone(), tell));
        let growth = Growth::new(host.plan.bounds, host.spare());
        Self {
            state: State::new(events),
            growth: Arc::new(growth),
            host,
            guest,
            calls,
            effects: FuturesUnordered::new(),
            guest_events,
            clock: Clock::new(),
            gone: watch::Sender::new(None),
        }
    }

    /// Drives the pod until the last handle is dropped; the pod then ends.
    pub async fn run(mut self) {
        loop {
            let alive = self.gone.borrow().is_none();
            tokio::select! {
                call = self.calls.recv() => match call {
                    Some(Call::Shutdown(reply)) => {
                        let ended = self.shut_down().await;
                        let _ = reply.send(ended);
                    }
                    Some(call) => self.take(call),
                    None => break,
                },
                Some(change) = self.effects.next(), if !self.effects.is_empty() => {
                    change(&mut self.state);
                    self.fit();
                    if let Some(reason) = self.state.given_up.take().filter(|_| alive) {
                        self.machine_ended(self.host.explain(&reason)).await;
                    }
                }
                Some(event) = self.guest_events.recv(), if alive => self.hear(event).await,
                reason = self.host.exited(), if alive => self.machine_ended(reason).await,
                () = self.clock.due(), if alive => self.sync_clock(),
            }
        }
        if let Err(error) = self.shut_down().await {
            tracing::warn!(pod = self.host.plan.id, %error, "end the pod");
        }
    }

    fn effects(&self) -> Effects {
        Effects {
            guest: self.guest.clone(),
            paths: self.host.plan.paths.clone(),
            growth: self.growth.clone(),
            machine_pid: self.host.machine_pid(),
            gone: self.gone.subscribe(),
        }
    }

    fn take(&mut self, call: Call) {
        let effects = self.effects();
        if let Some(effect) = operation::take(call, &mut self.state, effects) {
            self.effects.push(effect);
        }
        // Before that effect begins: it may wait for what it needs.
        self.fit();
    }

    /// The machine's size follows what its containers need now.
    fn fit(&mut self) {
        self.growth.want(self.state.demands());
        if let Some(effect) = self.growth.clone().settle(self.effects()) {
            self.effects.push(effect);
        }
    }

    async fn hear(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Exited(id, exit) => self.state.exited(&id, exit),
            GuestEvent::OutOfMemory(container) => self.state.out_of_memory(container),
            GuestEvent::Lost(error) => {
                let explained = tokio::time::timeout(EXPLAIN, self.host.exited()).await;
                let reason = explained.unwrap_or_else(|_| self.host.explain(&error.to_string()));
                self.machine_ended(reason).await;
            }
        }
    }

    fn sync_clock(&self) {
        let guest = self.guest.clone();
        self.effects.push(Box::pin(async move {
            match guest.sync_clock(false).await {
                Ok(offset) => tracing::trace!(?offset, "guest clock"),
                Err(error) => tracing::debug!(%error, "correct the guest's clock"),
            }
            Box::new(|_: &mut State| {}) as effect::Change
        }));
    }

    /// The machine or its file server ended unasked: everything of the pod ends.
    async fn machine_ended(&mut self, reason: String) {
        tracing::warn!(pod = self.host.plan.id, reason, "the pod's machine is gone");
        self.gone.send_replace(Some(reason.clone()));
        if let Err(error) = self.host.end_processes(Duration::ZERO).await {
            tracing::warn!(pod = self.host.plan.id, %error, "end the pod's processes");
        }
        self.drain().await;
        self.state.machine_ended(SystemTime::now());
        self.state.tell(Event::VmGone(reason));
        if let Err(error) = self.host.remove(Duration::ZERO).await {
            tracing::warn!(pod = self.host.plan.id, %error, "remove the pod");
        }
    }

    /// Lets effects that are under way come to their end, which is near: their machine is gone.
    async fn drain(&mut self) {
        let all = async {
            while let Some(change) = self.effects.next().await {
                change(&mut self.state);
            }
        };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            tracing::warn!(pod = self.host.plan.id, "calls are still under way");
        }
    }

    /// Ends the pod as asked for. What is left of an earlier attempt is tried again.
    async fn shut_down(&mut self) -> Result<(), Error> {
        let grace = self.host.plan.settings.timeouts.shutdown();
        if self.gone.borrow().is_none() {
            tracing::info!(pod = self.host.plan.id, "shutting down");
            // Answers or not: what counts is the machine's end.
            let guest = self.guest.clone();
            let asked =
                async { tokio::join!(guest.shutdown(grace), self.host.machine_ended(grace)).1 };
            let ended = asked.await;
            tracing::debug!(pod = self.host.plan.id, ended, "asked the guest to end");
            self.gone
                .send_replace(Some("the pod was shut down".to_owned()));
            let processes = self.host.end_processes(Duration::from_secs(1)).await;
            self.drain().await;
            self.state.machine_ended(SystemTime::now());
            processes?;
        }
        self.host.remove(Duration::ZERO).await
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
#[path = "growth_tests.rs"]
mod growth_tests;
#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
