//! How far the guest's wall clock is off, by the host's.
//!
//! The guest is asked for its time; what it answers was true at some moment between question and answer
//! (Cristian's algorithm, on which RFC 5905, section 8 builds). The shortest of some round trips tells most.

use std::time::{SystemTime, UNIX_EPOCH};

use isopod_protocol::agent::{ClockOffset, SyncClockRequest};
use protobuf::MessageField;
use tokio::time::timeout;

use super::{Answer, Guest, GuestError};

/// Round trips for one measurement, at most.
const TRIES: usize = 4;
/// Known as well as this, nanoseconds, it needs no further try.
const GOOD: u64 = 500_000;

/// One measurement, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offset {
    /// How far the guest's clock is ahead; negative if it is behind.
    pub ahead: i64,
    /// By how much that may be wrong.
    pub error: u64,
}

impl Offset {
    /// From what the guest's clock showed between two moments of the host's.
    fn between(before: i64, guest: i64, after: i64) -> Self {
        // The host's clock itself may be set back in between.
        let half = after.saturating_sub(before).max(0) / 2;
        Self {
            ahead: guest.saturating_sub(before.saturating_add(half)),
            error: half.unsigned_abs(),
        }
    }
}

impl Guest {
    /// Measures the guest's wall clock and has it corrected, a little at a time unless it is far off;
    /// `at_once` if no program can have looked at it yet. Nothing is answered if that is going on already:
    /// the other's correction would be taken for the clock's own going, and a guest that does not answer
    /// is not to gather who waits for it.
    pub async fn sync_clock(&self, at_once: bool) -> Answer<Option<Offset>> {
        let Ok(_turn) = self.clock.try_lock() else {
            return Ok(None);
        };
        // All of it within one request's limit: a guest that dawdles gains nothing.
        match timeout(self.limit, self.set_right(at_once)).await {
            Ok(offset) => offset.map(Some),
            Err(_) => Err(GuestError::TimedOut(self.limit)),
        }
    }

    async fn set_right(&self, at_once: bool) -> Answer<Offset> {
        let mut best = self.measure().await?;
        for _ in 1..TRIES {
            if best.error <= GOOD {
                break;
            }
            let next = self.measure().await?;
            if next.error < best.error {
                best = next;
            }
        }
        let offset = ClockOffset {
            // A clock that may be right stays; that it was looked at is said all the same.
            ahead_ns: if best.ahead.unsigned_abs() > best.error {
                best.ahead
            } else {
                0
            },
            error_ns: best.error,
            at_once,
            ..Default::default()
        };
        self.ask_clock(Some(offset)).await?;
        Ok(best)
    }

    async fn measure(&self) -> Answer<Offset> {
        let before = now();
        let guest = self.ask_clock(None).await?;
        Ok(Offset::between(before, guest, now()))
    }

    async fn ask_clock(&self, offset: Option<ClockOffset>) -> Answer<i64> {
        let request = SyncClockRequest {
            offset: MessageField::from_option(offset),
            ..Default::default()
        };
        let client = self.client();
        let call = client.sync_clock(self.context(), &request);
        Ok(self.ask(call).await?.realtime_ns)
    }
}

/// The host's wall clock in nanoseconds since the Unix epoch.
fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::exact((100, 105, 110), (0, 5))]
    #[case::behind((100, 50, 110), (-55, 5))]
    #[case::ahead((100, 200, 101), (100, 0))]
    #[case::the_host_was_set_back((100, 100, 40), (0, 0))]
    #[case::a_guest_that_lies((100, i64::MAX, 110), (i64::MAX - 105, 5))]
    #[case::a_guest_from_before_time((100, i64::MIN, 110), (i64::MIN, 5))]
    fn is_measured_from_the_middle(
        #[case] (before, guest, after): (i64, i64, i64),
        #[case] (ahead, error): (i64, u64),
    ) {
        assert_eq!(
            Offset::between(before, guest, after),
            Offset { ahead, error }
        );
    }
}
