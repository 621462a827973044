//! Closing what was inherited by accident.

use std::os::fd::RawFd;

use crate::{Error, sys};

/// Closes every descriptor above the standard streams but those in `keep`. To be called first thing
/// in `main`, before the process has opened anything: numbers are closed whoever owns them.
///
/// # Safety
/// No value in the process owns a descriptor above 2 that is not in `keep`.
///
/// # Errors
/// close_range(2) failed.
pub unsafe fn close_all_except(keep: &[RawFd]) -> Result<(), Error> {
    for (first, last) in gaps(keep) {
        // SAFETY: the caller's promise.
        unsafe { sys::close_range(first, last) }.map_err(|source| Error::CloseRange {
            first,
            last,
            source,
        })?;
    }
    Ok(())
}

/// The ranges above the standard streams that hold no number of `keep`.
fn gaps(keep: &[RawFd]) -> Vec<(u32, u32)> {
    let mut kept: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    kept.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = 3;
    for fd in kept {
        if fd < next {
            continue;
        }
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = fd + 1;
    }
    gaps.push((next, u32::MAX));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_leave_out_what_is_kept() {
        assert_eq!(gaps(&[]), [(3, u32::MAX)]);
        assert_eq!(gaps(&[3, 4]), [(5, u32::MAX)]);
        assert_eq!(gaps(&[9, 5, 5, 1]), [(3, 4), (6, 8), (10, u32::MAX)]);
        assert_eq!(gaps(&[-1, 4]), [(3, 3), (5, u32::MAX)]);
    }
}
