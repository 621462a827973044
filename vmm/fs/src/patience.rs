//! How long a queue is watched for the next request before its thread sleeps.
//!
//! A program in the guest that reads a directory or writes a file sends its next request soon after the
//! last answer. To be woken for it costs the guest a notification (an exit to its monitor) and the host
//! an idle processor that must wake up: together more than the request. So the thread looks at the ring
//! a little longer, for as long as that has paid lately (KVM does the same for a halted vCPU:
//! kernel, Documentation/virt/kvm/halt-polling.rst).
//!
//! ```text
//!            woken soon after the last answer: doubled, up to LONGEST
//!      0 ----------------------------------------------------------------> LONGEST
//!        <----------------------------------------------------------------
//!            woken late: nothing is coming, back to 0
//! ```
//!
//! Nothing that a guest does makes it longer than [`LONGEST`] for each request that it sends, and the
//! thread yields its processor to whoever else wants it.

use std::time::{Duration, Instant};

/// The longest watch after one answer.
pub const LONGEST: Duration = Duration::from_micros(400);
/// The first watch of a queue that has become busy.
const SHORTEST: Duration = Duration::from_micros(25);
/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 64;

/// Of one queue.
#[derive(Debug, Default)]
pub struct Patience {
    watch: Duration,
    /// When the last request was answered, while the thread sleeps.
    answered: Option<Instant>,
}

impl Patience {
    /// The thread was woken by the guest at `now`.
    pub fn woken(&mut self, now: Instant) {
        let Some(answered) = self.answered.take() else {
            return;
        };
        self.watch = if now.duration_since(answered) <= LONGEST {
            (self.watch * 2).clamp(SHORTEST, LONGEST)
        } else {
            Duration::ZERO
        };
    }

    /// The ring was found empty at `now`; the thread is about to sleep unless `more` comes true in time.
    pub fn outlasts(&mut self, now: Instant, mut more: impl FnMut() -> bool) -> bool {
        self.answered = Some(now);
        if self.watch.is_zero() {
            return false;
        }
        loop {
            for _ in 0..LOOKS {
                if more() {
                    self.answered = None;
                    return true;
                }
                std::hint::spin_loop();
            }
            if now.elapsed() >= self.watch {
                return false;
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_was_quiet_is_not_watched() {
        let mut patience = Patience::default();
        let now = Instant::now();
        patience.woken(now);
        assert!(!patience.outlasts(now, || panic!("looked at the ring")));
        patience.woken(now + LONGEST + Duration::from_micros(1));
        assert!(!patience.outlasts(now, || panic!("looked at the ring")));
    }

    #[test]
    fn a_busy_queue_is_watched_longer_and_longer_up_to_the_bound() {
        let mut patience = Patience::default();
        let mut before = Duration::ZERO;
        for _ in 0..10 {
            let now = Instant::now();
            patience.outlasts(now, || false);
            assert!(now.elapsed() >= before);
            patience.woken(now + LONGEST);
            assert!(patience.watch >= before && patience.watch <= LONGEST);
            before = patience.watch;
        }
        assert_eq!(before, LONGEST);
    }

    #[test]
    fn what_comes_in_time_is_taken_without_sleep() {
        let mut patience = Patience::default();
        let now = Instant::now();
        patience.outlasts(now, || false);
        patience.woken(now);
        let mut looks = 0;
        let come = |looks: &mut u32| {
            *looks += 1;
            *looks == 3
        };
        assert!(patience.outlasts(Instant::now(), || come(&mut looks)));
        assert_eq!(looks, 3);
        // It did not sleep: being woken tells nothing.
        patience.woken(Instant::now() + 2 * LONGEST);
        assert_eq!(patience.watch, SHORTEST);
    }

    #[test]
    fn a_late_request_ends_the_watching() {
        let mut patience = Patience::default();
        let now = Instant::now();
        patience.outlasts(now, || false);
        patience.woken(now);
        assert!(!patience.watch.is_zero());
        patience.outlasts(now, || false);
        patience.woken(now + 2 * LONGEST);
        assert!(patience.watch.is_zero());
    }
}
