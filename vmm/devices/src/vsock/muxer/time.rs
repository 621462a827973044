//! Deadlines of connections, and host programs that are asked again.

use std::time::Instant;

use super::{Connection, Host, Key, Muxer};

impl<H: Host> Muxer<H> {
    /// Time passes.
    pub fn on_time(&mut self, now: Instant) {
        while let Some(&(deadline, key)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            if let Some(connection) = self.connections.get_mut(&key) {
                let verdict = connection.give_up();
                self.conclude(key, verdict);
            }
        }
        if self.waiting.is_time(now) {
            self.retry(now);
        }
    }

    fn retry(&mut self, now: Instant) {
        while let Some(first) = self.waiting.pop() {
            if first.until <= now {
                self.refuse(first.key);
            } else if !self.try_connect(first.key, &first.request) {
                self.waiting.put_back(first);
                break;
            }
        }
        self.waiting.set_time(now);
    }

    /// When [`on_time`](Self::on_time) is to be called next.
    pub fn next_time(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        [deadline, self.waiting.time()].into_iter().flatten().min()
    }

    /// Keeps `deadlines` in step with a connection that may have changed its own.
    pub(super) fn note_deadline(&mut self, key: Key, before: Option<Instant>) {
        let after = self.connections.get(&key).and_then(Connection::deadline);
        if before != after {
            if let Some(before) = before {
                self.deadlines.remove(&(before, key));
            }
            if let Some(after) = after {
                self.deadlines.insert((after, key));
            }
        }
    }
}
