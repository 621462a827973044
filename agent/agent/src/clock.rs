//! The guest's clocks: since boot, and the wall clock that follows the host's.
//!
//! The host measures how far the wall clock is off, the kernel's own discipline (RFC 5905, section 11.3, as
//! adjtimex(2) has it) makes up for it: little by little and never backwards, learning on the way by how
//! much the clock runs fast or slow. What is too far off for that is set at once.

use std::io;

use isopod_protocol::agent::ClockOffset;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::sys;

/// A clock that is off by more is set at once: NTP's step threshold (STEPT of RFC 5905).
const STEP_NS: u64 = 128_000_000;

const SECOND: i64 = 1_000_000_000;

/// What to do about an offset.
#[derive(Debug, PartialEq, Eq)]
enum Correction {
    /// Nanoseconds to make up for, and by how much they may be wrong.
    Slew { by: i64, error: u64 },
    /// Nanoseconds to set it forward.
    Step(i64),
}

fn correction(offset: &ClockOffset) -> Correction {
    let by = offset.ahead_ns.saturating_neg();
    if offset.at_once || by.unsigned_abs() > STEP_NS {
        Correction::Step(by)
    } else {
        let error = offset.error_ns;
        Correction::Slew { by, error }
    }
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec
        .saturating_mul(SECOND)
        .saturating_add(time.tv_nsec)
}

/// CLOCK_BOOTTIME in nanoseconds.
pub(crate) fn since_boot() -> u64 {
    u64::try_from(nanoseconds(clock_gettime(ClockId::Boottime))).unwrap_or(0)
}

/// The wall clock in nanoseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// Moves the wall clock towards the host's.
pub(crate) fn correct(offset: &ClockOffset) -> io::Result<()> {
    match correction(offset) {
        Correction::Slew { by, error } => sys::slew_clock(by, error),
        Correction::Step(by) => sys::step_clock(by.div_euclid(SECOND), by.rem_euclid(SECOND)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const fn slew(by: i64) -> Correction {
        Correction::Slew { by, error: 7 }
    }

    #[rstest]
    #[case(0, slew(0))]
    #[case(2_000, slew(-2_000))]
    #[case(-128_000_000, slew(128_000_000))]
    #[case(128_000_001, Correction::Step(-128_000_001))]
    #[case(-1_700_000_000_000_000_000, Correction::Step(1_700_000_000_000_000_000))]
    #[case(i64::MIN, Correction::Step(i64::MAX))]
    fn small_offsets_slew_and_large_ones_step(#[case] ahead: i64, #[case] expected: Correction) {
        let offset = ClockOffset {
            ahead_ns: ahead,
            error_ns: 7,
            ..Default::default()
        };
        assert_eq!(correction(&offset), expected);
    }

    #[test]
    fn before_the_first_program_every_offset_steps() {
        let offset = ClockOffset {
            ahead_ns: 2_000,
            at_once: true,
            ..Default::default()
        };
        assert_eq!(correction(&offset), Correction::Step(-2_000));
    }
}
