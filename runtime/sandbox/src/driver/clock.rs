//! When the guest's clock is to be corrected: every 30 seconds, more often at first while the guest learns
//! how fast its clock goes, and at once when the host's clock was set or the host woke from suspend.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::time::{Instant, sleep_until};

use crate::host::readable::Readable;

/// Doubles until it is the period.
const FIRST: Duration = Duration::from_secs(2);
const PERIOD: Duration = Duration::from_secs(30);
/// Never comes: 2^40 seconds after the epoch.
const FAR: Timespec = Timespec {
    tv_sec: 1 << 40,
    tv_nsec: 0,
};

/// Tells when.
pub(crate) struct Clock {
    next: Instant,
    /// From that moment to the one after it.
    wait: Duration,
    /// A timer that the kernel cancels when the wall clock jumps (timerfd_create(2),
    /// TFD_TIMER_CANCEL_ON_SET); resume from suspend counts as a jump. Absent where it is not to be
    /// had: the period remains.
    jumps: Option<Readable>,
}

impl Clock {
    pub fn new() -> Self {
        let jumps = timer()
            .inspect_err(|error| tracing::debug!(%error, "watch the host's clock"))
            .ok();
        // It was set a moment ago, after the greeting.
        Self {
            next: Instant::now() + FIRST,
            wait: FIRST * 2,
            jumps,
        }
    }

    /// Waits until a correction is due. May be dropped and called again.
    pub async fn due(&mut self) {
        let jump = async {
            match &self.jumps {
                Some(timer) => jumped(timer).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep_until(self.next) => {
                self.next = Instant::now() + self.wait;
                self.wait = (self.wait * 2).min(PERIOD);
            }
            () = jump => {}
        }
    }
}

fn timer() -> std::io::Result<Readable> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
    arm(&timer)?;
    Readable::new(timer)
}

fn arm(timer: &OwnedFd) -> rustix::io::Result<()> {
    let never = Itimerspec {
        it_interval: Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: FAR,
    };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer, flags, &never).map(drop)
}

async fn jumped(timer: &Readable) {
    let mut expirations = [0; 8];
    let read = || match rustix::io::read(timer.get(), &mut expirations) {
        Err(rustix::io::Errno::AGAIN) => None,
        // ECANCELED is the jump. It stays pending until the timer is set again.
        _ => Some(()),
    };
    timer.when_ready(read).await;
    if arm(timer.get()).is_err() {
        // It would be ready for ever; the period remains.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_due_at_once() {
        let mut clock = Clock::new();
        assert!(clock.jumps.is_some());
        let due = tokio::time::timeout(Duration::from_millis(50), clock.due()).await;
        assert!(due.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn is_due_ever_less_often() {
        let mut clock = Clock::new();
        let mut waits = Vec::new();
        for _ in 0..7 {
            let begin = Instant::now();
            clock.due().await;
            waits.push(begin.elapsed().as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_and_comes_back_misses_nothing() {
        let mut clock = Clock::new();
        let begin = Instant::now();
        for _ in 0..3 {
            let due = tokio::time::timeout(Duration::from_millis(500), clock.due()).await;
            assert!(due.is_err());
        }
        clock.due().await;
        assert_eq!(begin.elapsed().as_secs(), 2);
    }
}
