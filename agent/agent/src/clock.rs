//! The guest's clocks: since boot, and the wall clock that follows the host's.

use std::io;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// A wall clock that is off by more is set at once, below it is slewed: programs see time go on.
const STEP_NS: i64 = 500_000_000;
/// Not worth a correction: a round trip of the call takes as long.
const TOLERANCE_NS: i64 = 1_000_000;

const SECOND: i64 = 1_000_000_000;

/// What to do about an offset.
#[derive(Debug, PartialEq, Eq)]
enum Correction {
    Nothing,
    /// Microseconds to make up for.
    Slew(i64),
    Step,
}

/// How to correct a clock that is `offset` nanoseconds ahead.
fn correction(offset: i64) -> Correction {
    match offset.checked_abs() {
        Some(size) if size <= TOLERANCE_NS => Correction::Nothing,
        Some(size) if size <= STEP_NS => Correction::Slew(-offset / 1_000),
        _ => Correction::Step,
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

/// Moves the wall clock towards the host's; answers how far ahead it was, in nanoseconds.
pub(crate) fn follow(host_ns: i64) -> io::Result<i64> {
    let offset = now().saturating_sub(host_ns);
    match correction(offset) {
        Correction::Nothing => {}
        Correction::Slew(microseconds) => crate::sys::slew_clock(microseconds)?,
        Correction::Step => {
            let time = Timespec {
                tv_sec: host_ns.div_euclid(SECOND),
                tv_nsec: host_ns.rem_euclid(SECOND),
            };
            clock_settime(ClockId::Realtime, time)?;
        }
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(0, Correction::Nothing)]
    #[case(-1_000_000, Correction::Nothing)]
    #[case(2_000_000, Correction::Slew(-2_000))]
    #[case(-2_000_000, Correction::Slew(2_000))]
    #[case(500_000_000, Correction::Slew(-500_000))]
    #[case(500_000_001, Correction::Step)]
    #[case(-1_700_000_000_000_000_000, Correction::Step)]
    #[case(i64::MIN, Correction::Step)]
    fn small_offsets_slew_and_large_ones_step(#[case] offset: i64, #[case] expected: Correction) {
        assert_eq!(correction(offset), expected);
    }
}
