//! What containers' limits ask of their machine, and how large it is to be for all of them.
//!
//! ```text
//!   memory: what it has without them + the sum of the limits     at least what it booted with,
//!   CPUs:   the sum of quota / period, rounded up                at most what it can grow to
//! ```
//! A container without a limit asks for nothing of its own: it shares what there is. A limit is a bound
//! for the container and no promise to it, as everywhere on Linux: one above what the machine can have is
//! no error.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

pub(super) const MIB: u64 = 1 << 20;
/// The kernel's own, in microseconds, where a quota comes without one.
const PERIOD: u64 = 100_000;
/// Parts of a CPU.
const MILLIONTHS: u64 = 1_000_000;

/// A machine's size, or what is wanted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Online.
    pub cpus: u32,
    /// Mebibytes.
    pub memory_mib: u64,
}

impl Size {
    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.max(other.cpus),
            memory_mib: self.memory_mib.max(other.memory_mib),
        }
    }

    /// The smaller of each.
    pub fn min(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.min(other.cpus),
            memory_mib: self.memory_mib.min(other.memory_mib),
        }
    }
}

/// The limits of one container, where it has some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    memory_bytes: Option<u64>,
    /// Microseconds of each period.
    quota: Option<u64>,
    /// Kept without a quota, too: an update may name one alone.
    period: Option<u64>,
}

impl Demand {
    /// Of a container's `linux.resources`.
    pub fn of(resources: Option<&LinuxResources>) -> Self {
        resources.map_or_else(Self::default, |resources| {
            Self::default().updated(resources)
        })
    }

    /// As an update leaves it. What it does not name stays; the rules are those by which the guest's
    /// cgroups are written (`isopod-container`, `cgroup/limits.rs`).
    pub fn updated(mut self, resources: &LinuxResources) -> Self {
        let memory = resources.memory().as_ref().and_then(LinuxMemory::limit);
        if let Some(limit) = memory.filter(|limit| *limit != 0) {
            self.memory_bytes = u64::try_from(limit).ok();
        }
        if let Some(cpu) = resources.cpu() {
            self.set_cpu(cpu);
        }
        // Files of the cgroup by name, written last. One that the guest's kernel will refuse asks for nothing.
        let file = |name: &str| resources.unified().as_ref()?.get(name);
        if let Some(limit) = file("memory.max").and_then(|text| amount(text, bytes)) {
            self.memory_bytes = limit;
        }
        if let Some(text) = file("cpu.max") {
            self.set_cpu_max(text);
        }
        self
    }

    /// `QUOTA` or `QUOTA PERIOD`, in microseconds (Documentation/admin-guide/cgroup-v2.rst).
    fn set_cpu_max(&mut self, text: &str) {
        let mut words = text.split_whitespace();
        let quota = words.next().and_then(|word| amount(word, plain));
        let period = words.next().map(plain);
        match (quota, period, words.next()) {
            (Some(quota), None, None) => self.quota = quota,
            (Some(quota), Some(Some(period)), None) => {
                (self.quota, self.period) = (quota, Some(period));
            }
            _ => {}
        }
    }

    fn set_cpu(&mut self, cpu: &LinuxCpu) {
        let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
        if period != 0 {
            self.period = Some(period);
        }
        if quota != 0 || period != 0 {
            self.quota = u64::try_from(quota).ok().filter(|quota| *quota != 0);
        }
    }

    /// With what is not `None` in place of its own.
    pub fn replaced(
        mut self,
        memory_bytes: Option<i64>,
        quota: Option<i64>,
        period: Option<i64>,
    ) -> Self {
        let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
        if let Some(bytes) = memory_bytes {
            self.memory_bytes = positive(bytes);
        }
        if let Some(quota) = quota {
            self.quota = positive(quota);
        }
        if let Some(period) = period {
            self.period = positive(period);
        }
        self
    }

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        let cpu = match self.millionths() >= other.millionths() {
            true => self,
            false => other,
        };
        Self {
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            ..cpu
        }
    }

    /// Of a CPU, rounded down: three thirds are one.
    fn millionths(self) -> u64 {
        let period = self.period.unwrap_or(PERIOD);
        let parts = self.quota.unwrap_or(0).saturating_mul(MILLIONTHS);
        // Nothing of a quota gets lost in the rounding: it needs a CPU.
        parts.div_euclid(period.max(1)).max(parts.min(1))
    }
}

/// A limit in a file of a cgroup: `max` is none.
fn amount(text: &str, number: fn(&str) -> Option<u64>) -> Option<Option<u64>> {
    match text.trim() {
        "max" => Some(None),
        text => number(text).map(Some),
    }
}

fn plain(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number| *number != 0)
}

/// With the suffixes that the kernel takes (lib/cmdline.c, `memparse`).
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (text.get(..at)?, 10),
        (at, 'm' | 'M') => (text.get(..at)?, 20),
        (at, 'g' | 'G') => (text.get(..at)?, 30),
        (at, 't' | 'T') => (text.get(..at)?, 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The sum of demands: CPUs, and MiB of memory, each rounded up.
pub(super) fn sum<'a>(demands: impl IntoIterator<Item = &'a Demand>) -> Size {
    let (mut millionths, mut bytes) = (0u64, 0u64);
    for demand in demands {
        millionths = millionths.saturating_add(demand.millionths());
        bytes = bytes.saturating_add(demand.memory_bytes.unwrap_or(0));
    }
    Size {
        cpus: u32::try_from(millionths.div_ceil(MILLIONTHS)).unwrap_or(u32::MAX),
        memory_mib: bytes.div_ceil(MIB),
    }
}

/// Between what sizes a machine moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// What it boots with: never less, for it is what was asked for the pod as a whole.
    pub boot: Size,
    /// What it can grow to.
    pub most: Size,
    /// Memory for its kernel and for containers without a limit, in MiB.
    pub own_mib: u64,
}

impl Bounds {
    /// What the machine is to have for these containers, and what they would need without the bounds.
    pub fn fit<'a>(&self, demands: impl IntoIterator<Item = &'a Demand>) -> (Size, Size) {
        let sum = sum(demands);
        let needed = Size {
            memory_mib: self.own_mib.saturating_add(sum.memory_mib),
            ..sum
        };
        (needed.max(self.boot).min(self.most), needed)
    }
}

#[cfg(test)]
#[path = "demand_tests.rs"]
mod tests;
