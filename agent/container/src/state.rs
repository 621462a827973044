//! A process's life, and a container's, which is its init process's.
//!
//! ```text
//!             start             pause
//!  Created ----------> Running -------> Paused
//!     |                   |    <-------   |
//!     | exit              | exit  resume  | exit
//!     v                   v               v
//!  Stopped <--------------+---------------+
//! ```
//! Each operation has a predicate; who acts asks it first and then calls the transition, which refuses
//! what the drawing does not show. Only an init process can be paused, and with it its container.

use std::fmt;

/// A place in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made; waits for its start.
    Created,
    /// Runs.
    Running,
    /// Frozen with its container.
    Paused,
    /// Ended; its exit is kept until it is deleted.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// An operation came at the wrong time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {operation} a {state} {subject}")]
pub struct WrongState {
    /// What was asked for.
    pub operation: &'static str,
    /// "container" or "process".
    pub subject: &'static str,
    /// Where it is.
    pub state: State,
}

impl State {
    /// May it be started?
    pub fn can_start(self) -> bool {
        self == Self::Created
    }
    /// May a process be added to the container?
    pub fn can_exec(self) -> bool {
        matches!(self, Self::Created | Self::Running)
    }
    /// Is there a process to signal?
    pub fn can_kill(self) -> bool {
        self != Self::Stopped
    }
    /// May it be frozen?
    pub fn can_pause(self) -> bool {
        self == Self::Running
    }
    /// May it be thawed?
    pub fn can_resume(self) -> bool {
        self == Self::Paused
    }
    /// May its limits be changed?
    pub fn can_update(self) -> bool {
        self != Self::Stopped
    }
    /// May it be freed? One that was never started is killed first.
    pub fn can_delete(self) -> bool {
        matches!(self, Self::Created | Self::Stopped)
    }

    /// Created -> Running.
    pub fn start(self) -> Result<Self, WrongState> {
        self.to(self.can_start(), Self::Running, "start")
    }
    /// Running -> Paused.
    pub fn pause(self) -> Result<Self, WrongState> {
        self.to(self.can_pause(), Self::Paused, "pause")
    }
    /// Paused -> Running.
    pub fn resume(self) -> Result<Self, WrongState> {
        self.to(self.can_resume(), Self::Running, "resume")
    }
    /// Anything -> Stopped: a process may end at any time.
    pub fn exit(self) -> Self {
        Self::Stopped
    }

    /// `Err` unless `allowed`, in the words that callers show.
    pub fn require(
        self,
        allowed: bool,
        operation: &'static str,
        subject: &'static str,
    ) -> Result<(), WrongState> {
        if allowed {
            return Ok(());
        }
        Err(WrongState {
            operation,
            subject,
            state: self,
        })
    }

    fn to(self, allowed: bool, next: Self, operation: &'static str) -> Result<Self, WrongState> {
        self.require(allowed, operation, "container")?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::State::{self, *};
    use rstest::rstest;

    // start, exec, kill, pause, resume, update, delete
    #[rstest]
    #[case(Created, [true, true, true, false, false, true, true])]
    #[case(Running, [false, true, true, true, false, true, false])]
    #[case(Paused, [false, false, true, false, true, true, false])]
    #[case(Stopped, [false, false, false, false, false, false, true])]
    fn what_each_state_allows(#[case] state: State, #[case] allowed: [bool; 7]) {
        assert_eq!(
            [
                state.can_start(),
                state.can_exec(),
                state.can_kill(),
                state.can_pause(),
                state.can_resume(),
                state.can_update(),
                state.can_delete(),
            ],
            allowed
        );
    }

    #[rstest]
    #[case(Created, Some(Running), None, None)]
    #[case(Running, None, Some(Paused), None)]
    #[case(Paused, None, None, Some(Running))]
    #[case(Stopped, None, None, None)]
    fn transitions_follow_the_drawing(
        #[case] state: State,
        #[case] start: Option<State>,
        #[case] pause: Option<State>,
        #[case] resume: Option<State>,
    ) {
        assert_eq!(state.start().ok(), start);
        assert_eq!(state.pause().ok(), pause);
        assert_eq!(state.resume().ok(), resume);
        assert_eq!(state.exit(), Stopped);
    }

    #[test]
    fn a_refusal_names_operation_and_state() {
        let error = Stopped.start().expect_err("a stopped one cannot start");
        assert_eq!(error.to_string(), "cannot start a stopped container");
    }
}
