//! The balloon: as large as the host asks, and empty when its driver leaves.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{SelfTestError, expect, number, system};

/// Until it has its size: an interpreted kernel takes some milliseconds a page on a busy host.
const LIMIT: Duration = Duration::from_secs(120);

/// Pages in it now.
fn pages() -> Result<i64, SelfTestError> {
    let path = Path::new("/proc/vmstat");
    let text = fs::read_to_string(path).map_err(system("read", path))?;
    let count = |name: &str| -> i64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    };
    Ok(count("balloon_inflate ") - count("balloon_deflate "))
}

/// Waits until it has the size that the host asks for.
pub(super) fn size() -> Result<String, SelfTestError> {
    let wanted = i64::try_from(number("isopod.selftest.balloon=")).unwrap_or(i64::MAX);
    let began = Instant::now();
    loop {
        let found = pages()?;
        if found == wanted {
            return Ok(format!("{wanted} pages given back"));
        }
        expect(began.elapsed() < LIMIT, || {
            format!("{found} pages of {wanted} in it")
        })?;
        std::thread::sleep(Duration::from_millis(20));
    }
}
