//! One process of a container, as far as the host knows.
//!
//! ```text
//!           create ok              start ok             exit
//! Creating ----------> Created ------------> Running --------> Stopped --delete--> (gone)
//!                       |   \-> Starting -/   |   ^               ^
//!                       |          |    pause v   | resume        |
//!                       |          |         Paused --------------+ exit
//!                       +----------+-------- exit ----------------+
//! ```
//! An exit that arrives while the agent's answer to create or start is under way is kept until that
//! answer is told: nobody hears of the end of a process before its beginning.

use tokio::sync::watch;

use crate::{Exit, ProcessState, Status};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The agent is making it.
    Creating,
    /// Made, not started.
    Created,
    /// The agent is starting it.
    Starting,
    /// Started.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    phase: Phase,
    pid: u32,
    /// The end; waiters hold receivers.
    exit: watch::Sender<Option<Exit>>,
    /// An end that may not be told yet.
    early: Option<Exit>,
    /// Being freed: no second delete.
    deleting: bool,
}

impl Process {
    pub fn creating() -> Self {
        Self {
            phase: Phase::Creating,
            pid: 0,
            exit: watch::Sender::new(None),
            early: None,
            deleting: false,
        }
    }

    pub fn can_start(&self) -> bool {
        self.phase == Phase::Created && !self.deleting
    }

    /// Whether there is something to send a signal to.
    pub fn can_kill(&self) -> bool {
        matches!(
            self.phase,
            Phase::Created | Phase::Starting | Phase::Running | Phase::Paused
        )
    }

    /// Whether its terminal and standard input are there.
    pub fn has_streams(&self) -> bool {
        self.can_kill()
    }

    /// Whether other processes can join it: also before its own command runs, as with runc.
    pub fn can_exec(&self) -> bool {
        let phase = matches!(
            self.phase,
            Phase::Created | Phase::Starting | Phase::Running
        );
        phase && !self.deleting
    }

    pub fn can_pause(&self) -> bool {
        self.phase == Phase::Running
    }

    pub fn can_resume(&self) -> bool {
        self.phase == Phase::Paused
    }

    pub fn can_delete(&self) -> bool {
        matches!(self.phase, Phase::Created | Phase::Stopped) && !self.deleting
    }

    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }

    /// The agent made it. Answers an end that came meanwhile.
    pub fn created(&mut self, pid: u32) -> Option<Exit> {
        self.settle(Phase::Created, pid)
    }

    pub fn starting(&mut self) {
        self.phase = Phase::Starting;
    }

    /// The agent started it. Answers an end that came meanwhile.
    pub fn started(&mut self, pid: u32) -> Option<Exit> {
        self.settle(Phase::Running, pid)
    }

    /// The agent refused to start it: it can be started again or deleted.
    pub fn start_refused(&mut self) -> Option<Exit> {
        self.settle(Phase::Created, self.pid)
    }

    fn settle(&mut self, phase: Phase, pid: u32) -> Option<Exit> {
        // The machine may have ended meanwhile.
        if self.phase == Phase::Stopped {
            return None;
        }
        self.phase = phase;
        self.pid = pid;
        let early = self.early.take()?;
        self.exited(early).then_some(early)
    }

    pub fn paused(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Paused;
        }
    }

    pub fn resumed(&mut self) {
        if self.phase == Phase::Paused {
            self.phase = Phase::Running;
        }
    }

    pub fn set_deleting(&mut self, deleting: bool) {
        self.deleting = deleting;
    }

    /// It ended. Whether that may be told now.
    pub fn exited(&mut self, exit: Exit) -> bool {
        match self.phase {
            Phase::Stopped => false,
            Phase::Creating | Phase::Starting => {
                self.early.get_or_insert(exit);
                false
            }
            Phase::Created | Phase::Running | Phase::Paused => {
                self.phase = Phase::Stopped;
                self.exit.send_replace(Some(exit));
                true
            }
        }
    }

    /// Its machine ended. Answers its own end if it was not told yet and is to be told now.
    pub fn machine_ended(&mut self, now: std::time::SystemTime) -> Option<Exit> {
        if self.phase == Phase::Stopped {
            return None;
        }
        // An init whose create fails, or an exec that was never started: nobody waits for its end.
        let told = self.pid != 0;
        let exit = self.early.take().unwrap_or(Exit {
            pid: self.pid,
            code: 128 + 9,
            at: now,
        });
        self.phase = Phase::Stopped;
        self.exit.send_replace(Some(exit));
        told.then_some(exit)
    }

    pub fn watch(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    pub fn state(&self) -> ProcessState {
        ProcessState {
            status: match self.phase {
                Phase::Creating | Phase::Created | Phase::Starting => Status::Created,
                Phase::Running => Status::Running,
                Phase::Paused => Status::Paused,
                Phase::Stopped => Status::Stopped,
            },
            pid: self.pid,
            exit: self.exit(),
        }
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
