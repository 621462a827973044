//! The threads of all vCPUs as one state machine.
//!
//! ```text
//!   new ──> Paused ──resume──> Running ──guest resets, or fails──> Stopped
//!             ^  │                │ │                                 ^
//!             │  └─────stop───────┼─┼─────────────────────────────────┤
//!             └───────pause───────┘ └──────────stop───────────────────┘
//! ```
//!
//! What is wanted is one word under one lock. A thread looks at it when `KVM_RUN` says that it was
//! interrupted, and at no other time: only then is the last port or register access complete, which
//! saving a processor's state demands. Who changes the word kicks every vCPU afterwards (see `kick`).
//!
//! A paused vCPU's thread has let go of its [`Vcpu`]; until it is resumed, others may lock it.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Bus, HypervisorError, Vcpu, VcpuCounters, VcpuError, kick::Kick, vcpu::Step};

/// How long vCPUs may take to come to rest: an exit is answered in microseconds, a busy host may not run
/// the thread for seconds.
const REST: Duration = Duration::from_secs(20);

/// What the vCPUs are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

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

struct Word {
    wanted: Wanted,
    /// Threads that hold their vCPU.
    running: u32,
    /// Threads that have not ended.
    alive: u32,
    end: Option<End>,
    /// Called once, with the first thread's end.
    on_end: Option<Box<dyn FnOnce() + Send>>,
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
    /// Starts a thread per vCPU, paused. `prepare` is called on each thread first (its system call
    /// filter); `on_end` once, on the thread that ends first.
    ///
    /// # Errors
    /// A thread cannot be started, or `prepare` failed.
    pub fn start(
        vcpus: Vec<Vcpu>,
        bus: &Arc<dyn Bus>,
        prepare: &Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>,
        on_end: Box<dyn FnOnce() + Send>,
    ) -> Result<Self, HypervisorError> {
        let shared = Arc::new(Shared {
            word: Mutex::new(Word {
                wanted: Wanted::Pause,
                running: 0,
                alive: 0,
                end: None,
                on_end: Some(on_end),
            }),
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
                    live(&shared, &vcpu, &kick, bus.as_ref());
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
        let mut word = self.shared.word();
        if word.wanted == Wanted::Stop {
            return Err(HypervisorError::WrongState {
                act: "resume",
                state: "stopped",
            });
        }
        word.wanted = Wanted::Run;
        drop(word);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Brings every vCPU to rest between two instructions and returns when they are. Their state may be
    /// looked at, saved and changed until they are resumed.
    ///
    /// # Errors
    /// The guest has ended, or a vCPU does not come to rest.
    pub fn pause(&self) -> Result<(), HypervisorError> {
        let mut word = self.shared.word();
        if word.wanted == Wanted::Stop {
            return Err(HypervisorError::WrongState {
                act: "pause",
                state: "stopped",
            });
        }
        word.wanted = Wanted::Pause;
        drop(word);
        self.kick_all();
        self.wait("pause", |word| word.running == 0)
    }

    /// Whether the guest is paused, and no vCPU moves.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        let word = self.shared.word();
        word.wanted == Wanted::Pause && word.running == 0
    }

    /// Ends every thread and tells why the guest ran no further.
    ///
    /// # Errors
    /// A vCPU does not come to rest.
    pub fn stop(&mut self) -> Result<End, HypervisorError> {
        self.shared.word().end(End::Stopped);
        self.shared.changed.notify_all();
        self.kick_all();
        self.wait("stop", |word| word.alive == 0)?;
        for runner in &mut self.runners {
            if let Some(thread) = runner.thread.take() {
                // A thread that panicked has told so; there is no more to learn.
                let _ = thread.join();
            }
        }
        Ok(self.shared.word().end.take().unwrap_or(End::Stopped))
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

    fn wait(&self, act: &'static str, done: impl Fn(&Word) -> bool) -> Result<(), HypervisorError> {
        let deadline = Instant::now() + REST;
        let mut word = self.shared.word();
        while !done(&word) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let id = word.running;
                return Err(HypervisorError::Unresponsive { id, act });
            }
            let waited = self.shared.changed.wait_timeout(word, left);
            word = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
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

impl Word {
    /// Writes down an end, unless there is one.
    fn end(&mut self, end: End) {
        self.wanted = Wanted::Stop;
        self.end.get_or_insert(end);
    }
}

/// The life of one vCPU's thread.
fn live(shared: &Shared, vcpu: &Mutex<Vcpu>, kick: &Kick, bus: &dyn Bus) {
    kick.enter();
    shared.word().alive += 1;
    let on_end = loop {
        {
            let mut word = shared.word();
            loop {
                match word.wanted {
                    Wanted::Pause => {
                        let waited = shared.changed.wait(word);
                        word = waited.unwrap_or_else(PoisonError::into_inner);
                    }
                    Wanted::Run => break,
                    Wanted::Stop => break,
                }
            }
            if word.wanted == Wanted::Stop {
                word.alive -= 1;
                break word.on_end.take();
            }
            word.running += 1;
        }
        let end = run(shared, vcpu, kick, bus);
        let mut word = shared.word();
        word.running -= 1;
        if let Some(end) = end {
            word.end(end);
        }
        drop(word);
        shared.changed.notify_all();
    };
    kick.leave();
    shared.changed.notify_all();
    if let Some(on_end) = on_end {
        on_end();
    }
}

/// Runs until something else is wanted (`None`) or the guest is at its end.
fn run(shared: &Shared, vcpu: &Mutex<Vcpu>, kick: &Kick, bus: &dyn Bus) -> Option<End> {
    let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match vcpu.step(bus) {
            Ok(Step::Ran) => {}
            Ok(Step::Interrupted) => {
                kick.take();
                if shared.word().wanted != Wanted::Run {
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
