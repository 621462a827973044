//! What is wanted of all vCPUs, as data: see the drawing in [`super`].

use super::End;

/// What the guest is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

/// What one vCPU's thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Enter the guest.
    Run,
    /// Stay out of it, until something else is wanted.
    Park,
    /// End.
    End,
}

/// What all threads share, under one lock.
pub(super) struct Word {
    wanted: Wanted,
    /// vCPUs below this number may run.
    granted: u32,
    /// By number: whose threads hold their vCPU.
    running: Vec<bool>,
    /// Threads that have not ended.
    alive: u32,
    end: Option<End>,
    /// Called once, with the first thread's end.
    on_end: Option<Box<dyn FnOnce() + Send>>,
}

impl Word {
    /// Of a paused guest.
    pub fn new(count: usize, granted: u32, on_end: Box<dyn FnOnce() + Send>) -> Self {
        Self {
            wanted: Wanted::Pause,
            granted,
            running: vec![false; count],
            alive: 0,
            end: None,
            on_end: Some(on_end),
        }
    }

    /// What vCPU `id` is to do now.
    pub fn task(&self, id: u32) -> Task {
        match self.wanted {
            Wanted::Stop => Task::End,
            Wanted::Run if id < self.granted => Task::Run,
            Wanted::Run | Wanted::Pause => Task::Park,
        }
    }

    /// Whether nobody may change anything any more.
    pub fn is_stopped(&self) -> bool {
        self.wanted == Wanted::Stop
    }

    /// Whether it is paused, and no vCPU moves.
    pub fn is_paused(&self) -> bool {
        self.wanted == Wanted::Pause && self.running().is_none()
    }

    /// Those that are granted shall run.
    pub fn run(&mut self) {
        self.wanted = Wanted::Run;
    }

    /// None shall.
    pub fn pause(&mut self) {
        self.wanted = Wanted::Pause;
    }

    pub fn granted(&self) -> u32 {
        self.granted
    }

    /// vCPUs below this number may run from now on.
    pub fn grant(&mut self, count: u32) {
        self.granted = count;
    }

    /// Writes down an end, unless there is one.
    pub fn end(&mut self, end: End) {
        self.wanted = Wanted::Stop;
        self.end.get_or_insert(end);
    }

    /// Why the guest ran no further; told once.
    pub fn take_end(&mut self) -> Option<End> {
        self.end.take()
    }

    /// vCPU `id`'s thread holds it, or has let go of it.
    pub fn set_running(&mut self, id: u32, runs: bool) {
        let of = usize::try_from(id).ok();
        if let Some(running) = of.and_then(|id| self.running.get_mut(id)) {
            *running = runs;
        }
    }

    /// The first vCPU whose thread holds it.
    pub fn running(&self) -> Option<u32> {
        self.running_from(0)
    }

    /// The first that does though it is not granted.
    pub fn trespassing(&self) -> Option<u32> {
        self.running_from(self.granted)
    }

    fn running_from(&self, first: u32) -> Option<u32> {
        let mut all = (0u32..).zip(&self.running);
        let found = all.find(|(id, runs)| *id >= first && **runs);
        found.map(|(id, _)| id)
    }

    /// One thread more.
    pub fn born(&mut self) {
        self.alive += 1;
    }

    /// One thread less. The first takes what is to be called.
    pub fn died(&mut self) -> Option<Box<dyn FnOnce() + Send>> {
        self.alive -= 1;
        self.on_end.take()
    }

    pub fn alive(&self) -> u32 {
        self.alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word() -> Word {
        Word::new(4, 2, Box::new(|| ()))
    }

    fn tasks(word: &Word) -> [Task; 4] {
        [0, 1, 2, 3].map(|id| word.task(id))
    }

    #[test]
    fn those_that_are_granted_run_when_the_guest_does() {
        use Task::{End as Over, Park, Run};
        let mut word = word();
        assert_eq!(tasks(&word), [Park; 4]);
        word.run();
        assert_eq!(tasks(&word), [Run, Run, Park, Park]);
        word.grant(3);
        assert_eq!(tasks(&word), [Run, Run, Run, Park]);
        word.pause();
        assert_eq!(tasks(&word), [Park; 4]);
        // A grant is no resumption, and outlasts a pause.
        word.grant(1);
        assert_eq!(tasks(&word), [Park; 4]);
        word.run();
        assert_eq!(tasks(&word), [Run, Park, Park, Park]);
        word.end(End::Reset);
        assert_eq!(tasks(&word), [Over; 4]);
        assert!(word.is_stopped());
    }

    #[test]
    fn who_still_runs_is_told() {
        let mut word = word();
        assert!(word.is_paused());
        word.run();
        for id in [0, 1] {
            word.set_running(id, true);
        }
        assert_eq!((word.running(), word.trespassing()), (Some(0), None));
        word.grant(1);
        assert_eq!(word.trespassing(), Some(1));
        word.set_running(1, false);
        assert_eq!((word.running(), word.trespassing()), (Some(0), None));
        word.pause();
        assert!(!word.is_paused(), "the first still moves");
        word.set_running(0, false);
        assert!(word.is_paused());
        // A number of nobody changes nothing.
        word.set_running(9, true);
        assert_eq!(word.running(), None);
    }

    #[test]
    fn the_first_end_counts_and_the_first_thread_tells() {
        let mut word = word();
        word.born();
        word.born();
        word.end(End::Reset);
        word.end(End::Stopped);
        assert!(word.died().is_some());
        assert!(word.died().is_none());
        assert_eq!(word.alive(), 0);
        assert!(matches!(word.take_end(), Some(End::Reset)));
        assert!(word.take_end().is_none());
    }
}
