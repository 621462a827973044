//! What happened, kept until the host has acknowledged it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use isopod_protocol::{
    agent::{Event, OutOfMemory, ProcessExited, event::Kind},
    limits,
};
use tokio::{sync::Notify, time::timeout};

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    last: u64,
}

/// The queue. Numbers are 1, 2, 3, ... without gaps.
#[derive(Debug, Default)]
pub(crate) struct Events {
    kept: Mutex<Kept>,
    arrived: Notify,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, container: &str, kind: Kind) {
        let mut kept = self.lock();
        kept.last = kept.last.saturating_add(1);
        let mut event = Event::new();
        event.sequence = kept.last;
        event.container_id = container.to_owned();
        event.kind = Some(kind);
        kept.events.push_back(event);
        drop(kept);
        self.arrived.notify_waiters();
    }

    /// A process ended.
    pub(crate) fn exited(&self, container: &str, exited: ProcessExited) {
        self.push(container, Kind::Exited(exited));
    }

    /// The kernel killed something for lack of memory. A container can cause these without end, so one
    /// that waits to be fetched is brought up to date instead of adding another; its place is kept.
    pub(crate) fn out_of_memory(&self, container: &str, kills: u64) {
        let mut kept = self.lock();
        let waiting = kept.events.iter_mut().find_map(|event| {
            let same = event.container_id == container;
            match &mut event.kind {
                Some(Kind::OutOfMemory(oom)) if same => Some(oom),
                _ => None,
            }
        });
        if let Some(oom) = waiting {
            oom.kills = kills;
            return;
        }
        drop(kept);
        let mut oom = OutOfMemory::new();
        oom.kills = kills;
        self.push(container, Kind::OutOfMemory(oom));
    }

    /// Forgets what is acknowledged and answers what came later, waiting for it a while.
    pub(crate) async fn after(&self, acknowledged: u64) -> Vec<Event> {
        let wait = async {
            loop {
                let arrived = self.arrived.notified();
                tokio::pin!(arrived);
                // Before looking, so that nothing slips in between.
                arrived.as_mut().enable();
                let events = self.take(acknowledged);
                if !events.is_empty() {
                    return events;
                }
                arrived.await;
            }
        };
        timeout(limits::EVENT_POLL, wait).await.unwrap_or_default()
    }

    fn take(&self, acknowledged: u64) -> Vec<Event> {
        let mut kept = self.lock();
        while kept
            .events
            .front()
            .is_some_and(|event| event.sequence <= acknowledged)
        {
            kept.events.pop_front();
        }
        kept.events
            .iter()
            .take(limits::EVENT_BATCH)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn events_stay_until_acknowledged() {
        let events = Events::default();
        events.exited("a", ProcessExited::new());
        events.exited("b", ProcessExited::new());
        assert_eq!(numbers(&events.after(0).await), [1, 2]);
        assert_eq!(numbers(&events.after(0).await), [1, 2]);
        assert_eq!(numbers(&events.after(1).await), [2]);
        assert!(events.after(2).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_call_is_woken() {
        let events = std::sync::Arc::new(Events::default());
        let waiting = tokio::spawn({
            let events = std::sync::Arc::clone(&events);
            async move { events.after(0).await }
        });
        tokio::task::yield_now().await;
        events.exited("a", ProcessExited::new());
        assert_eq!(numbers(&waiting.await.expect("no panic")), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_kills_is_one_event_per_container() {
        let events = Events::default();
        for kills in 1..=1000 {
            events.out_of_memory("a", kills);
        }
        events.out_of_memory("b", 1);
        let kept = events.after(0).await;
        assert_eq!(numbers(&kept), [1, 2]);
        assert_eq!(kept[0].out_of_memory().kills, 1000);
        // Once fetched and acknowledged, the next is news again.
        assert!(events.after(2).await.is_empty());
        events.out_of_memory("a", 1001);
        assert_eq!(numbers(&events.after(2).await), [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_bounded() {
        let events = Events::default();
        for _ in 0..limits::EVENT_BATCH + 5 {
            events.exited("a", ProcessExited::new());
        }
        assert_eq!(events.after(0).await.len(), limits::EVENT_BATCH);
        assert_eq!(events.after(limits::EVENT_BATCH as u64).await.len(), 5);
    }
}
