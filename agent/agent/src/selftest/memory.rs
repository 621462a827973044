//! Memory that the host adds: used, given back, its driver reset, and used again.
//!
//! ```text
//! all plugged ─ used ─ asks the host to take it ─ none plugged ─ resets ─ asks for it ─ all plugged ─ used
//! ```
//! What is plugged is what the kernel lists as its driver's (`/proc/iomem`): a block that is listed no
//! more has gone back to the host.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{Device, SelfTestError, expect, number, pattern, system};
use crate::log;

/// Until the guest has what the host wants it to have: an interpreted kernel takes a second for a MiB.
const LIMIT: Duration = Duration::from_secs(300);
/// What is used of it, each byte: MiB.
const USED_MIB: usize = 4;

/// MiB that the host has to give, and takes when it is asked to; 0: it does neither.
pub(super) fn offered() -> u64 {
    number("isopod.selftest.memory=")
}

/// MiB that are plugged.
fn plugged() -> Result<u64, SelfTestError> {
    let path = Path::new("/proc/iomem");
    let text = fs::read_to_string(path).map_err(system("read", path))?;
    let ours = text.lines().filter(|line| line.contains("(virtio_mem)"));
    let bytes = ours.filter_map(|line| {
        let (range, _) = line.trim().split_once(' ')?;
        let (start, last) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        address(last)?.checked_sub(address(start)?)?.checked_add(1)
    });
    Ok(bytes.fold(0, u64::saturating_add) >> 20)
}

fn reaches(wanted: u64) -> Result<(), SelfTestError> {
    let began = Instant::now();
    loop {
        let found = plugged()?;
        if found == wanted {
            return Ok(());
        }
        expect(began.elapsed() < LIMIT, || {
            format!("{found} MiB of {wanted} are plugged")
        })?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Free pages of the zone that added memory is in, from which programs are served first.
fn free() -> Result<usize, SelfTestError> {
    let path = Path::new("/proc/zoneinfo");
    let text = fs::read_to_string(path).map_err(system("read", path))?;
    let (_, zone) = text.split_once("zone  Movable").unwrap_or_default();
    let line = zone
        .lines()
        .find_map(|line| line.trim().strip_prefix("pages free"));
    Ok(line
        .and_then(|pages| pages.trim().parse().ok())
        .unwrap_or(0))
}

/// Waits until all is plugged, and uses some.
pub(super) fn used(scale: usize) -> Result<String, SelfTestError> {
    let offered = offered();
    if offered == 0 {
        return Ok("in use".to_owned());
    }
    reaches(offered)?;
    let mut bytes = vec![0; (USED_MIB * scale) << 20];
    let pages = bytes.len() / 4096;
    // A block is listed before its pages are online.
    let began = Instant::now();
    let before = loop {
        let found = free()?;
        if found > pages {
            break found;
        }
        expect(began.elapsed() < LIMIT, || {
            format!("{found} pages of {offered} MiB are online")
        })?;
        std::thread::sleep(Duration::from_millis(100));
    };
    for (n, page) in bytes.chunks_mut(4096).enumerate() {
        pattern(n, page);
    }
    let after = free()?;
    let mut wanted = [0; 4096];
    for (n, page) in bytes.chunks(4096).enumerate() {
        pattern(n, &mut wanted);
        expect(page == wanted, || format!("page {n} differs"))?;
    }
    // Others take and free pages meanwhile.
    expect(before.saturating_sub(after) >= pages / 2, || {
        format!("{pages} pages used, and its free ones went from {before} to {after}")
    })?;
    Ok(format!("{offered} MiB plugged, {pages} pages used"))
}

/// Gives all back, has its driver leave and come, and asks for it again.
pub(super) fn reset(device: &Device, times: usize) -> Result<(), SelfTestError> {
    log::error("selftest: the host is to take its memory");
    reaches(0)?;
    for _ in 0..times {
        device.reset()?;
    }
    expect(plugged()? == 0, || "nobody gave it memory".to_owned())?;
    log::error("selftest: the host is to give its memory");
    Ok(())
}
