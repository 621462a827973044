//! The threads of all vCPUs as one state machine.
//!
//! ```text
//!   the guest:
//!   new ──> Paused ──resume──> Running ──guest resets, or fails──> Stopped
//!             ^  │                │ │                                 ^
//!             │  └─────stop───────┼─┼─────────────────────────────────┤
//!             └───────pause───────┘ └──────────stop───────────────────┘
//!
//!   each vCPU in it:
//!   parked ──Running, and its number is below what is granted──> in KVM_RUN
//!     ^                                                             │
//!     └────Paused, or its number is so no more: it is kicked────────┘      Stopped: its thread ends
//! ```
//!
//! What is wanted is one [`Word`] under one lock. A thread looks at it when `KVM_RUN` says that it was
//! interrupted, and at no other time: only then is the last port or register access complete, which
//! saving a processor's state demands. Who changes the word kicks every vCPU afterwards (see `kick`).
//!
//! A parked vCPU's thread sleeps and has let go of its [`Vcpu`]; in a paused guest, others may lock it.
//! One that is not granted stays parked whatever the guest does: an INIT and a SIPI that are sent to it
//! wait in KVM until it is. One that is taken back stands still where it is, as if the host had no time
//! for it, and goes on from there if it is granted again, unless the guest has sent it an INIT by then.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Bus, HypervisorError, Vcpu, VcpuCounters, VcpuError, kick::Kick, vcpu::Step};
use word::{Task, Word};

mod word;

/// How long vCPUs may take to come to rest: an exit is answered in microseconds, a busy host may not run
/// the thread for seconds.
const REST: Duration = Duration::from_secs(20);

/// Why the guest ran no further. The first reason counts.
#[derive(Debug)]
pub enum End {
    /// It asked for a reset, by port or by triple fault: the orderly end of a guest without ACPI.
    Reset,
    /// The owner stopped it.
    Stopped,
    /// A processor cannot go on.
    Failed(VcpuError),
}

/// What all threads share.
struct Shared {
    word: Mutex<Word>,
    changed: Condvar,
}

impl Shared {
    fn word(&self) -> MutexGuard<'_, Word> {
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One vCPU and its thread.
struct Runner {
    vcpu: Arc<Mutex<Vcpu>>,
    kick: Kick,
    thread: Option<JoinHandle<()>>,
}

/// All vCPUs of a machine.
pub struct Runners {
    shared: Arc<Shared>,
    runners: Vec<Runner>,
}

impl Runners {
    /// Starts a thread per vCPU, paused; vCPUs in the order of their numbers, of which those below
    /// `granted` may run. `prepare` is called on each thread first (its system call filter); `on_end`
    /// once, on the thread that ends first.
    ///
    /// # Errors
    /// A thread cannot be started, or `prepare` failed; see also [`Self::grant`].
    pub fn start(
        vcpus: Vec<Vcpu>,
        granted: u32,
        bus: &Arc<dyn Bus>,
        prepare: &Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>,
        on_end: Box<dyn FnOnce() + Send>,
    ) -> Result<Self, HypervisorError> {
        check_grant(granted, vcpus.len())?;
        let shared = Arc::new(Shared {
            word: Mutex::new(Word::new(vcpus.len(), granted, on_end)),
            changed: Condvar::new(),
        });
        let mut all = Self {
            shared,
            runners: Vec::new(),
        };
        for vcpu in vcpus {
            all.add(vcpu, bus, prepare)?;
        }
        Ok(all)
    }

    fn add(
        &mut self,
        vcpu: Vcpu,
        bus: &Arc<dyn Bus>,
        prepare: &Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>,
    ) -> Result<(), HypervisorError> {
        let failed = |act| move |source| HypervisorError::Thread { act, source };
        let (id, kick) = (vcpu.id(), vcpu.kick());
        let vcpu = Arc::new(Mutex::new(vcpu));
        let (prepared, outcome) = std::sync::mpsc::sync_channel(1);
        let job = {
            let (shared, bus, prepare) = (
                Arc::clone(&self.shared),
                Arc::clone(bus),
                Arc::clone(prepare),
            );
            let (vcpu, kick) = (Arc::clone(&vcpu), kick.clone());
            move || {
                let ready = prepare();
                let good = ready.is_ok();
                let _ = prepared.send(ready);
                if good {
                    live(&shared, id, &vcpu, &kick, bus.as_ref());
                }
            }
        };
        let thread = thread::Builder::new()
            .name(format!("vcpu-{id}"))
            .spawn(job)
            .map_err(failed("start a vCPU's thread"))?;
        self.runners.push(Runner {
            vcpu,
            kick,
            thread: Some(thread),
        });
        outcome
            .recv()
            .unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))
            .map_err(failed("confine a vCPU's thread"))
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self) -> Result<(), HypervisorError> {
        self.change("resume", Word::run)?;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Brings every vCPU to rest between two instructions and returns when they are. Their state may be
    /// looked at, saved and changed until they are resumed.
    ///
    /// # Errors
    /// The guest has ended, or a vCPU does not come to rest.
    pub fn pause(&self) -> Result<(), HypervisorError> {
        self.change("pause", Word::pause)?;
        self.kick_all();
        self.wait("pause", Word::running)
    }

    /// Lets vCPUs below `count` run when the guest does, and no others. Those that do and may not any
    /// more are stopped where they are; it returns when they are.
    ///
    /// # Errors
    /// None is left, or there are not so many; the guest has ended. A vCPU does not come to rest: it may
    /// not run all the same, and stands as soon as it leaves the guest.
    pub fn grant(&self, count: u32) -> Result<(), HypervisorError> {
        self.check_grant(count)?;
        self.change("grant", |word| word.grant(count))?;
        self.shared.changed.notify_all();
        self.kick_all();
        self.wait("park", Word::trespassing)
    }

    /// Whether so many could be granted.
    ///
    /// # Errors
    /// None would be left, or there are not so many.
    pub fn check_grant(&self, count: u32) -> Result<(), HypervisorError> {
        check_grant(count, self.runners.len())
    }

    /// vCPUs below this number may run.
    #[must_use]
    pub fn granted(&self) -> u32 {
        self.shared.word().granted()
    }

    /// Whether the guest is paused, and no vCPU moves.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.shared.word().is_paused()
    }

    /// Ends every thread and tells why the guest ran no further.
    ///
    /// # Errors
    /// A vCPU does not come to rest.
    pub fn stop(&mut self) -> Result<End, HypervisorError> {
        self.shared.word().end(End::Stopped);
        self.shared.changed.notify_all();
        self.kick_all();
        self.wait("stop", |word| (word.alive() > 0).then_some(word.alive()))?;
        for runner in &mut self.runners {
            if let Some(thread) = runner.thread.take() {
                // A thread that panicked has told so; there is no more to learn.
                let _ = thread.join();
            }
        }
        Ok(self.shared.word().take_end().unwrap_or(End::Stopped))
    }

    /// Runs `job` on every vCPU in turn, while they are paused.
    ///
    /// # Errors
    /// They are not paused, or the job's.
    pub fn each<T>(
        &self,
        mut job: impl FnMut(&Vcpu) -> Result<T, HypervisorError>,
    ) -> Result<Vec<T>, HypervisorError> {
        if !self.is_paused() {
            return Err(HypervisorError::WrongState {
                act: "look into",
                state: "running",
            });
        }
        self.runners
            .iter()
            .map(|runner| job(&runner.vcpu.lock().unwrap_or_else(PoisonError::into_inner)))
            .collect()
    }

    /// What each vCPU did; those that run now are left out.
    #[must_use]
    pub fn counters(&self) -> Vec<Option<VcpuCounters>> {
        let of = |runner: &Runner| Some(runner.vcpu.try_lock().ok()?.counters());
        self.runners.iter().map(of).collect()
    }

    fn kick_all(&self) {
        self.runners.iter().for_each(|runner| runner.kick.kick());
    }

    /// Changes what is wanted of a guest that has not ended.
    fn change(
        &self,
        act: &'static str,
        change: impl FnOnce(&mut Word),
    ) -> Result<(), HypervisorError> {
        let mut word = self.shared.word();
        if word.is_stopped() {
            let state = "stopped";
            return Err(HypervisorError::WrongState { act, state });
        }
        change(&mut word);
        Ok(())
    }

    /// Until there is no vCPU left that `busy` names.
    fn wait(
        &self,
        act: &'static str,
        busy: impl Fn(&Word) -> Option<u32>,
    ) -> Result<(), HypervisorError> {
        let deadline = Instant::now() + REST;
        let mut word = self.shared.word();
        while let Some(id) = busy(&word) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HypervisorError::Unresponsive { id, act });
            }
            let waited = self.shared.changed.wait_timeout(word, left);
            word = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// The first always may run, and none that is not there.
fn check_grant(granted: u32, count: usize) -> Result<(), HypervisorError> {
    let present = u32::try_from(count).unwrap_or(u32::MAX);
    match (1..=present).contains(&granted) {
        true => Ok(()),
        false => Err(HypervisorError::Grant { granted, present }),
    }
}

impl Drop for Runners {
    fn drop(&mut self) {
        if self.runners.iter().any(|runner| runner.thread.is_some()) {
            // Threads that do not stop keep what they use alive by themselves.
            let _ = self.stop();
        }
    }
}

/// The life of one vCPU's thread.
fn live(shared: &Shared, id: u32, vcpu: &Mutex<Vcpu>, kick: &Kick, bus: &dyn Bus) {
    kick.enter();
    let mut word = shared.word();
    word.born();
    let on_end = loop {
        match word.task(id) {
            Task::Park => {
                let waited = shared.changed.wait(word);
                word = waited.unwrap_or_else(PoisonError::into_inner);
            }
            Task::Run => {
                word.set_running(id, true);
                drop(word);
                let end = run(shared, id, vcpu, kick, bus);
                word = shared.word();
                word.set_running(id, false);
                if let Some(end) = end {
                    word.end(end);
                }
                shared.changed.notify_all();
            }
            Task::End => break word.died(),
        }
    };
    drop(word);
    kick.leave();
    shared.changed.notify_all();
    if let Some(on_end) = on_end {
        on_end();
    }
}

/// Runs until something else is wanted (`None`) or the guest is at its end.
fn run(shared: &Shared, id: u32, vcpu: &Mutex<Vcpu>, kick: &Kick, bus: &dyn Bus) -> Option<End> {
    let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match vcpu.step(bus) {
            Ok(Step::Ran) => {}
            Ok(Step::Interrupted) => {
                kick.take();
                if shared.word().task(id) != Task::Run {
                    return None;
                }
            }
            Ok(Step::Reset) => return Some(End::Reset),
            Err(error) => return Some(End::Failed(error)),
        }
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
