//! The real-time clock (MC146818), as far as a kernel reads it at boot: the time of day, in BCD, and that
//! the battery is good. A kernel that finds no clock there waits seconds for one to answer.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// Index and data.
pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 0x70..=0x71;

/// 24 hours, BCD.
const STATUS_B: u8 = 1 << 1;
/// RAM and time are valid.
const STATUS_D: u8 = 1 << 7;

#[derive(Default)]
pub(crate) struct Clock {
    index: AtomicU8,
}

impl Clock {
    pub fn read(&self, port: u16) -> u8 {
        if port == *PORTS.start() {
            return 0xff;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        register(
            self.index.load(Ordering::Relaxed),
            now.map_or(0, |now| now.as_secs()),
        )
    }

    /// The register that is selected.
    pub fn save(&self) -> u8 {
        self.index.load(Ordering::Relaxed)
    }

    pub fn restore(&self, index: u8) {
        self.write(*PORTS.start(), index);
    }

    pub fn write(&self, port: u16, byte: u8) {
        if port == *PORTS.start() {
            // The upper bit masks NMIs.
            self.index.store(byte & 0x7f, Ordering::Relaxed);
        }
    }
}

/// A register's value so many seconds after 1970.
fn register(index: u8, seconds: u64) -> u8 {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let value = match index {
        0 => seconds % 60,
        2 => seconds / 60 % 60,
        4 => seconds / 3600 % 24,
        // 1 January 1970 was a Thursday; Sunday is 1.
        6 => (days + 4) % 7 + 1,
        7 => day,
        8 => month,
        9 => year % 100,
        0x32 => year / 100 % 100,
        // Status A: no update in progress. C: no interrupt.
        0x0b => return STATUS_B,
        0x0d => return STATUS_D,
        _ => return 0,
    };
    let value = (value % 100) as u8;
    ((value / 10) << 4) | (value % 10)
}

/// Days since 1970 as year, month and day (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_bcd() {
        // date -u -d @1709210096: Thu Feb 29 12:34:56 UTC 2024
        let time = 1_709_210_096;
        let registers = [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| register(index, time));
        assert_eq!(registers, [0x56, 0x34, 0x12, 5, 0x29, 2, 0x24, 0x20]);
        assert_eq!(register(0x0a, time) & 0x80, 0, "no update in progress");
        assert_eq!(register(0x0d, time), STATUS_D);
    }

    #[test]
    fn the_first_and_the_last_day_of_a_year() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(364), (1970, 12, 31));
        assert_eq!(civil(20_453), (2025, 12, 31));
        assert_eq!(civil(20_454), (2026, 1, 1));
    }
}
