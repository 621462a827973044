//! Connections of the guest to host programs whose listen queue is full.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{packet::Header, seam::Key};

/// How many may wait.
pub const MAX_WAITING: usize = 128;

/// How often they are tried again.
pub const RETRY: Duration = Duration::from_millis(10);

/// How long they are tried. Linux's guests give up after 2 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);

/// One that waits.
#[derive(Debug)]
pub struct Waiting {
    /// Its ports.
    pub key: Key,
    /// What the guest sent.
    pub request: Header,
    /// When it is given up.
    pub until: Instant,
}

/// All that wait, in the order in which they came.
#[derive(Debug, Default)]
pub struct WaitingRequests {
    requests: VecDeque<Waiting>,
    retry_at: Option<Instant>,
}

impl WaitingRequests {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether this one waits.
    pub fn contains(&self, key: Key) -> bool {
        self.requests.iter().any(|waiting| waiting.key == key)
    }

    /// Adds one; false when there are too many.
    pub fn push(&mut self, key: Key, request: &Header, now: Instant) -> bool {
        if self.requests.len() >= MAX_WAITING {
            return false;
        }
        self.retry_at.get_or_insert(now + RETRY);
        self.requests.push_back(Waiting {
            key,
            request: *request,
            until: now + CONNECT_TIMEOUT,
        });
        true
    }

    /// Removes one; false if it does not wait.
    pub fn remove(&mut self, key: Key) -> bool {
        let at = self.requests.iter().position(|waiting| waiting.key == key);
        at.and_then(|at| self.requests.remove(at)).is_some()
    }

    /// Takes the first.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.requests.pop_front()
    }

    /// Puts the first back.
    pub fn put_back(&mut self, first: Waiting) {
        self.requests.push_front(first);
    }

    /// When they are to be tried again.
    pub fn time(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether that time has come.
    pub fn is_time(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| at <= now)
    }

    /// Sets the next time, if anybody waits.
    pub fn set_time(&mut self, now: Instant) {
        self.retry_at = (!self.requests.is_empty()).then_some(now + RETRY);
    }
}
