//! When the guest's clock is to be corrected: every 30 seconds, and at once when the host's clock was
//! set or the host woke from suspend.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::host::readable::Readable;

const PERIOD: Duration = Duration::from_secs(30);
/// Never comes: 2^40 seconds after the epoch.
const FAR: Timespec = Timespec {
    tv_sec: 1 << 40,
    tv_nsec: 0,
};

/// Tells when.
pub(crate) struct Clock {
    ticks: Interval,
    /// A timer that the kernel cancels when the wall clock jumps (timerfd_create(2),
    /// TFD_TIMER_CANCEL_ON_SET); resume from suspend counts as a jump. Absent where it is not to be
    /// had: the period remains.
    jumps: Option<Readable>,
}

impl Clock {
    pub fn new() -> Self {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The agent's greeting set the clock a moment ago.
        ticks.reset();
        let jumps = timer()
            .inspect_err(|error| tracing::debug!(%error, "watch the host's clock"))
            .ok();
        Self { ticks, jumps }
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
            _ = self.ticks.tick() => {}
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
    async fn the_period_makes_it_due() {
        let mut clock = Clock::new();
        let begin = tokio::time::Instant::now();
        clock.due().await;
        assert_eq!(begin.elapsed().as_secs(), PERIOD.as_secs());
    }
}
