//! One process that the host knows by name: a container's init or an exec.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isopod_container::state::{State, WrongState};
use isopod_protocol::agent::{ExitStatus, ProcessExited};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::sync::watch;

use crate::{events::Events, pipes::End};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub pid: i32,
    /// 0 to 255; 128 + signal.
    pub code: u32,
    /// Wall clock, nanoseconds since the epoch.
    pub at: i64,
}

impl Exit {
    pub(crate) fn message(self) -> ExitStatus {
        let mut status = ExitStatus::new();
        status.pid = u32::try_from(self.pid).unwrap_or(0);
        status.code = self.code;
        status.exited_at_ns = self.at;
        status
    }
}

#[derive(Debug)]
struct Life {
    state: State,
    pid: i32,
    /// The host has been told that it exists: its exit is an event.
    announced: bool,
    terminal: Option<Arc<End>>,
}

/// A process. Signals and exits are handled on one thread, so a pid is never used after it was reaped.
#[derive(Debug)]
pub(crate) struct Process {
    pub container: String,
    /// Empty for init.
    pub exec: String,
    life: Mutex<Life>,
    exit: watch::Sender<Option<Exit>>,
    input_closed: watch::Sender<bool>,
}

impl Process {
    pub(crate) fn new(container: &str, exec: &str) -> Self {
        Self {
            container: container.to_owned(),
            exec: exec.to_owned(),
            life: Mutex::new(Life {
                state: State::Created,
                pid: 0,
                announced: false,
                terminal: None,
            }),
            exit: watch::Sender::new(None),
            input_closed: watch::Sender::new(false),
        }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// "container" or "process", for messages.
    pub(crate) fn subject(&self) -> &'static str {
        if self.exec.is_empty() {
            "container"
        } else {
            "process"
        }
    }

    pub(crate) fn state(&self) -> State {
        self.life().state
    }

    /// 0 before it has one.
    pub(crate) fn pid(&self) -> i32 {
        self.life().pid
    }

    pub(crate) fn set_pid(&self, pid: i32) {
        self.life().pid = pid;
    }

    /// Moves along the drawing of [`isopod_container::state`].
    pub(crate) fn step(
        &self,
        transition: impl FnOnce(State) -> Result<State, WrongState>,
    ) -> Result<(), WrongState> {
        let mut life = self.life();
        life.state = transition(life.state)?;
        Ok(())
    }

    /// It never came to be, and will not.
    pub(crate) fn fail(&self) {
        let mut life = self.life();
        life.state = life.state.exit();
    }

    pub(crate) fn set_terminal(&self, master: Arc<End>) {
        self.life().terminal = Some(master);
    }

    pub(crate) fn terminal(&self) -> Option<Arc<End>> {
        self.life().terminal.clone()
    }

    pub(crate) fn close_input(&self) {
        self.input_closed.send_replace(true);
    }

    pub(crate) fn input_closed(&self) -> watch::Receiver<bool> {
        self.input_closed.subscribe()
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        loop {
            if let Some(exit) = *exit.borrow_and_update() {
                return exit;
            }
            // The sender lives as long as this process, so this cannot fail while we are here.
            if exit.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// It was reaped.
    pub(crate) fn end(&self, exit: Exit, events: &Events) {
        let announced = {
            let mut life = self.life();
            life.state = life.state.exit();
            // The master is kept by the copy until the last output is out.
            life.terminal = None;
            life.announced
        };
        self.exit.send_replace(Some(exit));
        if announced {
            self.tell(exit, events);
        }
    }

    /// The host learns of it with the answer that follows. An exit that came before is an event now.
    pub(crate) fn announce(&self, events: &Events) {
        let first = !std::mem::replace(&mut self.life().announced, true);
        if let (true, Some(exit)) = (first, self.exit()) {
            self.tell(exit, events);
        }
    }

    fn tell(&self, exit: Exit, events: &Events) {
        let mut exited = ProcessExited::new();
        exited.exec_id = self.exec.clone();
        exited.exit = Some(exit.message()).into();
        events.exited(&self.container, exited);
    }

    /// Sends a signal; one that ends meanwhile has got it.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), Errno> {
        let life = self.life();
        if life.pid <= 0 || !life.state.can_kill() {
            return Err(Errno::ESRCH);
        }
        send_signal(life.pid, signal)
    }
}

/// kill(2) with any number, real-time signals included, which `Signal` does not name.
pub(crate) fn send_signal(pid: i32, signal: i32) -> Result<(), Errno> {
    match Signal::try_from(signal) {
        Ok(signal) => kill(Pid::from_raw(pid), signal),
        Err(e) => crate::sys::kill_realtime(pid, signal).map_err(|_| e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit {
        pid: 7,
        code: 3,
        at: 1,
    };

    #[tokio::test(start_paused = true)]
    async fn an_exit_before_the_announcement_is_told_with_it() {
        let events = Events::default();
        let process = Process::new("c", "");
        process.end(EXIT, &events);
        assert!(events.after(0).await.is_empty());
        process.announce(&events);
        process.announce(&events);
        let told = events.after(0).await;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].exited().exit.code, 3);
        assert_eq!(process.ended().await, EXIT);
        assert_eq!(process.state(), State::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_never_announced_ends_silently() {
        let events = Events::default();
        Process::new("c", "").end(EXIT, &events);
        assert!(events.after(0).await.is_empty());
    }

    #[test]
    fn a_stopped_process_gets_no_signal() {
        let process = Process::new("c", "e");
        // No pid yet: kill(0, ...) would be the agent's own process group.
        assert_eq!(process.signal(9), Err(Errno::ESRCH));
        process.set_pid(7);
        process.end(EXIT, &Events::default());
        assert_eq!(process.signal(9), Err(Errno::ESRCH));
    }
}
