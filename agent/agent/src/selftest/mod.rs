//! The guest's own test of its virtio devices (feature `selftest`, never in a shipped image).
//!
//! PID 1 does it in place of serving where the kernel's command line says `isopod.selftest=N`, tells the
//! console how it went, and resets the machine, or rests where it says `isopod.selftest.rest` too. N is
//! how much of everything: 1 for a processor that is interpreted, more for others.
//!
//! ```text
//! each device: data there and back ─ flood ─ driver unbound and bound (a reset) ─ data again
//! ```
//! Devices are found in sysfs by their number (virtio 1.2, 5). The one that the root is on is not reset; memory
//! is, where the host takes it back for that (`isopod.selftest.memory=MIB`).

mod balloon;
mod memory;
mod net;
mod storage;
mod streams;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::log;

const DEVICES: &str = "/sys/bus/virtio/devices";
/// Acknowledged, driver, features agreed on, driver ready (virtio 1.2, 2.1): what a device in use says.
const IN_USE: &str = "0x0000000f";

/// Of each device.
const RESETS: usize = 3;
/// Until a disk that its driver makes in the background is there.
const BACKGROUND: Duration = Duration::from_secs(60);

/// A device that does not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelfTestError {
    #[error("{act} {path}: {source}")]
    System {
        act: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{0}")]
    Wrong(String),
}

fn system(act: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> SelfTestError {
    let path = path.as_ref().display().to_string();
    move |source| SelfTestError::System { act, path, source }
}

fn expect(right: bool, told: impl FnOnce() -> String) -> Result<(), SelfTestError> {
    if right {
        Ok(())
    } else {
        Err(SelfTestError::Wrong(told()))
    }
}

/// How much is asked for, if it is.
pub(crate) fn wanted() -> Option<usize> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    word(&line, "isopod.selftest=")?.parse().ok()
}

/// What the kernel's command line says after `name`; 0, if it does not.
fn number(name: &str) -> u64 {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let number = word(&line, name);
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Whether the machine rests afterwards, so that the host can look at it.
pub(crate) fn rests() -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    word(&line, "isopod.selftest.rest").is_some()
}

fn word<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|w| w.strip_prefix(name))
}

/// One device as sysfs shows it.
struct Device {
    /// `virtioN`.
    name: String,
    path: PathBuf,
    /// Its number in virtio 1.2, 5.
    kind: u32,
}

impl Device {
    fn open(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_owned();
        let text = fs::read_to_string(path.join("device")).ok()?;
        let kind = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()?;
        Some(Self { name, path, kind })
    }

    /// The one entry of a directory of its own: `block`, `net`.
    fn child(&self, class: &str) -> Result<String, SelfTestError> {
        let path = self.path.join(class);
        let mut entries = fs::read_dir(&path).map_err(system("list", &path))?;
        let entry = entries.next().and_then(Result::ok);
        let name = entry.and_then(|entry| entry.file_name().into_string().ok());
        name.ok_or_else(|| SelfTestError::Wrong(format!("{path:?} is empty")))
    }

    /// The disk that is made of this device, however far below it in sysfs, once it is there.
    fn descendant(&self) -> Result<String, SelfTestError> {
        let began = Instant::now();
        let path = fs::canonicalize(&self.path).map_err(system("find", &self.path))?;
        let disks = Path::new("/sys/block");
        loop {
            for entry in fs::read_dir(disks).map_err(system("list", disks))? {
                let disk = entry.map_err(system("list", disks))?;
                let below = fs::canonicalize(disk.path()).is_ok_and(|disk| disk.starts_with(&path));
                if let (true, Ok(name)) = (below, disk.file_name().into_string()) {
                    return Ok(name);
                }
            }
            expect(began.elapsed() < BACKGROUND, || {
                format!("{path:?} has become no disk")
            })?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn attribute(&self, name: &str) -> Result<String, SelfTestError> {
        let path = self.path.join(name);
        let text = fs::read_to_string(&path).map_err(system("read", &path))?;
        Ok(text.trim().to_owned())
    }

    /// Takes the driver away, which resets the device, and gives it back, which starts it anew.
    fn reset(&self) -> Result<(), SelfTestError> {
        let driver = self.path.join("driver");
        let driver = fs::canonicalize(&driver).map_err(system("find", &driver))?;
        for act in ["unbind", "bind"] {
            let path = driver.join(act);
            fs::write(&path, &self.name).map_err(system("write", &path))?;
        }
        self.in_use()
    }

    fn in_use(&self) -> Result<(), SelfTestError> {
        let status = self.attribute("status")?;
        expect(status == IN_USE, || format!("its status is {status}"))
    }

    /// Data and a flood; what was done.
    fn exercise(&self, scale: usize) -> Result<String, SelfTestError> {
        self.in_use()?;
        match self.kind {
            1 => net::frames(self, scale),
            2 => storage::disk(self, scale),
            3 => streams::console(scale),
            4 => streams::entropy(scale),
            19 => streams::vsock(scale),
            24 => memory::used(scale),
            26 => storage::share(scale),
            27 => storage::range(self, scale),
            5 => balloon::size(),
            _ => Ok("in use".to_owned()),
        }
    }

    fn kind(&self) -> &'static str {
        match self.kind {
            1 => "net",
            2 => "blk",
            3 => "console",
            4 => "rng",
            5 => "balloon",
            19 => "vsock",
            24 => "mem",
            26 => "fs",
            27 => "pmem",
            _ => "unknown",
        }
    }

    /// Whether something else of this guest is lost with it.
    fn is_needed(&self) -> bool {
        let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let root = word(&line, "root=/dev/").unwrap_or_default();
        match self.kind {
            2 => self.child("block").is_ok_and(|name| root == name),
            27 => self.descendant().is_ok_and(|name| root == name),
            3 => line.contains("console=hvc"),
            // Memory that is in use cannot be given back, unless the host takes it.
            24 => memory::offered() == 0,
            _ => false,
        }
    }

    fn test(&self, scale: usize) -> Result<String, SelfTestError> {
        let first = self.exercise(scale)?;
        if self.is_needed() {
            return Ok(format!("{first}; needed, not reset"));
        }
        match self.kind {
            24 => memory::reset(self, RESETS)?,
            _ => (0..RESETS).try_for_each(|_| self.reset())?,
        }
        let again = self.exercise(scale)?;
        Ok(format!("{first}; after three resets {again}"))
    }
}

/// Tests every device that there is, and tells the console.
pub(crate) fn run(scale: usize) {
    let (mut passed, mut failed) = (0, 0);
    let mut paths: Vec<PathBuf> = fs::read_dir(DEVICES)
        .map(|entries| entries.filter_map(|e| Some(e.ok()?.path())).collect())
        .unwrap_or_default();
    paths.sort();
    for device in paths.into_iter().filter_map(Device::open) {
        let told = match device.test(scale) {
            Ok(done) => {
                passed += 1;
                format!("passed: {done}")
            }
            Err(error) => {
                failed += 1;
                format!("failed: {error}")
            }
        };
        log::error(&format!(
            "selftest: {} {}: {told}",
            device.kind(),
            device.name
        ));
    }
    log::error(&format!("selftest: {passed} passed, {failed} failed"));
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: usize, bytes: &mut [u8]) {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for (to, from) in word.iter_mut().zip(state.to_le_bytes()) {
            *to = from;
        }
    }
}
