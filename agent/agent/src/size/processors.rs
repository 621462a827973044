//! Processors: `cpu/present` lists them, `cpu/cpuN/online` says and sets whether one works. The first has
//! no such file and always does.

use std::path::PathBuf;

use super::{SizeError, System, read, write};

/// More are not believed (the kernel is built for 64).
const MOST: u32 = 1024;

/// The kernel's lists of numbers: `0-3,5` (Documentation/admin-guide/cputopology.rst).
pub(super) fn list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    let parts = text.trim().split(',').filter(|part| !part.is_empty());
    for part in parts {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MOST {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

impl System {
    fn processors(&self, which: &str) -> Result<Vec<u32>, SizeError> {
        let path = self.cpu.join(which);
        let text = read(&path)?;
        list(&text).ok_or(SizeError::Text { path, text })
    }

    fn switch(&self, number: u32) -> PathBuf {
        self.cpu.join(format!("cpu{number}/online"))
    }

    /// How far those that work reach: one more than the highest number.
    pub(super) fn online(&self) -> Result<u32, SizeError> {
        let online = self.processors("online")?;
        Ok(online.iter().max().map_or(0, |highest| highest + 1))
    }

    /// Lets all below `wanted` work; the others do what they did. The host lets no others run.
    pub(super) fn bring_online(&self, wanted: u32) -> Result<(), SizeError> {
        let present = self.processors("present")?;
        if wanted == 0 || usize::try_from(wanted).is_ok_and(|wanted| wanted > present.len()) {
            let most = present.len();
            return Err(SizeError::Request(format!(
                "cpus: {wanted} of {most} processors"
            )));
        }
        let online = self.processors("online")?;
        let offline = present.iter().filter(|number| !online.contains(number));
        for number in offline.filter(|number| **number < wanted) {
            write(&self.switch(*number), "1")?;
        }
        Ok(())
    }

    /// Lets none from `wanted` on work, the highest first; or why not.
    pub(super) fn take_offline(&self, wanted: u32) -> Result<(), String> {
        let act = || {
            let online = self.processors("online")?;
            let surplus = online.iter().filter(|number| **number >= wanted.max(1));
            for number in surplus.rev() {
                write(&self.switch(*number), "0")?;
            }
            Ok(())
        };
        act().map_err(|error: SizeError| error.to_string())
    }
}
