//! The machine's size follows its containers' limits.
//!
//! ```text
//!   create, update:  wanted up    -> grow: memory, then processors   -> the container gets its limits
//!   update, delete:  the limits   -> wanted down -> shrink, beside everything else
//!
//!   grow:    the engine lends memory, grants processors    the agent brings both into use
//!   shrink:  the agent takes out of use as far as it goes  the engine takes away what is not used
//! ```
//! Growing comes before whoever needs it, and fails with it. Shrinking comes after, and its failure is told
//! and has no other consequence: the guest keeps what it does not give back. Acts come one after the
//! other, each towards what is wanted when it begins; so their order does not matter.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Mutex, watch};

use super::effect::{Change, Effect, Effects};
use crate::{
    Error,
    engine::{EngineError, Lent, Spare},
    plan::{Bounds, Demand, Size},
};

/// What moves the machine between its bounds.
pub(crate) struct Growth {
    bounds: Bounds,
    spare: Option<Box<dyn Spare>>,
    wanted: watch::Sender<Size>,
    now: Mutex<Now>,
    /// Told once for each time that it begins.
    short: AtomicBool,
    /// Somebody is about to take back what is not wanted, or does.
    settling: AtomicBool,
}

/// The one who takes back, until it is done or given up.
struct Turn(Arc<Growth>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.settling.store(false, Ordering::Release);
    }
}

/// Where the machine is between its bounds.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// What the guest has for sure: what growing failed to give it is not here.
    has: Size,
    /// What it may have: what growing tried to give it is here.
    most: Size,
    /// Processors that the engine lets it run. What it refuses to take offline it keeps.
    granted: u32,
}

impl Growth {
    /// Of a machine that booted.
    pub fn new(bounds: Bounds, spare: Option<Box<dyn Spare>>) -> Self {
        let mib = spare.as_ref().map_or(0, |spare| spare.memory_mib());
        let most = bounds.boot.memory_mib.saturating_add(mib);
        let bounds = Bounds {
            most: Size {
                memory_mib: bounds.most.memory_mib.min(most),
                ..bounds.most
            },
            ..bounds
        };
        Self {
            bounds,
            spare,
            wanted: watch::Sender::new(bounds.boot),
            now: Mutex::new(Now {
                has: bounds.boot,
                most: bounds.boot,
                granted: bounds.boot.cpus,
            }),
            short: AtomicBool::new(false),
            settling: AtomicBool::new(false),
        }
    }

    /// What these containers need is wanted from now on.
    pub fn want<'a>(&self, demands: impl IntoIterator<Item = &'a Demand>) {
        let (size, needed) = self.bounds.fit(demands);
        let short = needed.max(size) != size;
        if short && !self.short.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                ?needed,
                most = ?self.bounds.most,
                "the containers' limits are above what their machine can have: vm.max_cpus, \
                 vm.spare_cpus, vm.max_memory_mib, vm.spare_memory_mib"
            );
        }
        self.short.fetch_and(short, Ordering::Relaxed);
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != size;
            *wanted = size;
            changed
        });
    }

    /// Until the guest has at least what is wanted.
    pub async fn grow(&self, effects: &Effects) -> Result<(), Error> {
        let mut now = self.now.lock().await;
        let before = now.has;
        let size = before.max(*self.wanted.borrow());
        if before == size {
            return Ok(());
        }
        now.most = now.most.max(size);
        let memory = self.lend(before, size, effects).await?;
        if size.cpus > now.granted {
            self.grant(size.cpus, effects).await?;
            now.granted = size.cpus;
        }
        let grown = effects.ask(effects.guest.set_size(size.cpus, memory));
        let grown = grown.await.map_err(|error| grow_error(size, error))?;
        if grown.cpus < size.cpus {
            let error = Error::Failed(format!("it has {} CPUs", grown.cpus));
            return Err(grow_error(size, error));
        }
        now.has = size;
        tracing::info!(?before, now = ?size, "the machine has grown");
        Ok(())
    }

    /// Takes back what is not wanted any more.
    async fn shrink(&self, effects: &Effects) -> Result<(), Error> {
        let mut now = self.now.lock().await;
        let before = now.most;
        let size = before.min(*self.wanted.borrow());
        if before == size {
            return Ok(());
        }
        // Tried once, whatever comes of it.
        now.most = size;
        now.has = now.has.min(size);
        let memory = self.lend(before, size, effects).await?;
        // Growing may have failed before it came to the processors.
        let cpus = size.cpus.min(now.granted);
        let shrunk = effects.ask(effects.guest.set_size(cpus, memory));
        let shrunk = shrunk.await?;
        // A guest that says that it uses more than it was granted gets no more than that.
        let used = shrunk.cpus.max(cpus).min(now.granted);
        if before.cpus != size.cpus {
            self.grant(used, effects).await?;
            now.granted = used;
        }
        match shrunk.kept.as_str() {
            "" => tracing::info!(?before, now = ?size, "the machine has shrunk"),
            why => {
                tracing::warn!(?before, wanted = ?size, why, "the guest keeps more than it needs")
            }
        }
        Ok(())
    }

    /// Lets the guest have the memory of `size`, if it had another.
    async fn lend(&self, before: Size, size: Size, effects: &Effects) -> Result<Lent, Error> {
        let spare = self.spare.as_ref();
        let spare = spare.filter(|_| size.memory_mib != before.memory_mib);
        let Some(spare) = spare else {
            return Ok(Lent::default());
        };
        let mib = size.memory_mib.saturating_sub(self.bounds.boot.memory_mib);
        let lent = spare.lend(mib).await;
        lent.map_err(|error| engine_error(error, effects))
    }

    async fn grant(&self, cpus: u32, effects: &Effects) -> Result<(), Error> {
        let Some(spare) = self.spare.as_ref() else {
            return Ok(());
        };
        let granted = spare.grant(cpus).await;
        granted.map_err(|error| engine_error(error, effects))
    }

    /// Work for the driver, if there is something to take back. The end of that work is a reason to ask
    /// again.
    pub fn settle(self: Arc<Self>, effects: Effects) -> Option<Effect> {
        if effects.gone().is_some() {
            return None;
        }
        let turn = self.turn()?;
        Some(Box::pin(async move {
            match turn.0.shrink(&effects).await {
                Ok(()) | Err(Error::VmGone(_)) => {}
                Err(error) => tracing::warn!(%error, "shrink the machine"),
            }
            drop(turn);
            Box::new(|_: &mut super::State| {}) as Change
        }))
    }

    /// For one at a time: two who wait for each other's end would, by asking again after it, never come to
    /// theirs.
    fn turn(self: Arc<Self>) -> Option<Turn> {
        if self.settling.swap(true, Ordering::Acquire) {
            return None;
        }
        let turn = Turn(self);
        // Somebody acts on the size just now: what is wanted may be less than what comes of it.
        let idle = match turn.0.now.try_lock() {
            Ok(now) => now.most.min(*turn.0.wanted.borrow()) == now.most,
            Err(_) => false,
        };
        (!idle).then_some(turn)
    }
}

/// What a machine that has ended does not do has its end for a reason.
fn engine_error(error: EngineError, effects: &Effects) -> Error {
    effects.gone().map_or_else(|| error.into(), Error::VmGone)
}

fn grow_error(size: Size, error: Error) -> Error {
    let Size { cpus, memory_mib } = size;
    match error {
        gone @ Error::VmGone(_) => gone,
        error => Error::Failed(format!(
            "give the virtual machine {cpus} CPUs and {memory_mib} MiB of memory: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The driver asks after the end of every act. Once there was always one more to wait for.
    #[tokio::test]
    async fn one_at_a_time_takes_back_and_then_nobody() {
        let size = Size {
            cpus: 1,
            memory_mib: 512,
        };
        let bounds = Bounds {
            boot: size,
            most: size,
            own_mib: 0,
        };
        let growth = Arc::new(Growth::new(bounds, None));
        assert!(growth.clone().turn().is_none(), "nothing to take back");

        let grows = growth.now.lock().await;
        let turn = growth.clone().turn().expect("after what grows now");
        assert!(growth.clone().turn().is_none(), "there is one already");
        drop(turn);
        let turn = growth.clone().turn().expect("it still grows");
        drop(grows);
        drop(turn);
        assert!(growth.clone().turn().is_none(), "nothing to take back");
    }
}
