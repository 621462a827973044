//! One test: what it runs on, what it needs, how long it may take.

use std::time::Duration;

use anyhow::Result;

use crate::{Bed, Machine, Need, Runtime};

/// On what a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// On runc first, as the proof of the case itself, and on isopod.
    Both,
    /// On isopod only: runc has no such thing.
    Isopod,
}

/// Whether a case runs once more on isopod's own monitor: see [`crate::smoke`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Smoke {
    /// It does not.
    No,
    /// In a pod that it shares with other such cases.
    Shares,
    /// The same, after all others: it ends the pod.
    Ends,
}

/// One test.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    name: &'static str,
    on: On,
    pub(crate) body: fn(&Bed) -> Result<()>,
    pub(crate) limit: Duration,
    needs: &'static [Need],
    pub(crate) alone: bool,
    pub(crate) probe: bool,
    newer: bool,
    pub(crate) smoke: Smoke,
}

/// What one case runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub runtime: Runtime,
    /// Under the newer containerd.
    pub newer: bool,
    /// On isopod's own monitor, whichever engine the others run on.
    pub smoke: bool,
}

impl Case {
    /// A case for both runtimes.
    pub const fn both(name: &'static str, body: fn(&Bed) -> Result<()>) -> Self {
        let limit = Duration::from_secs(120);
        Self {
            name,
            on: On::Both,
            body,
            limit,
            needs: &[],
            alone: false,
            probe: false,
            newer: false,
            smoke: Smoke::No,
        }
    }

    /// A case for isopod only.
    pub const fn isopod(name: &'static str, body: fn(&Bed) -> Result<()>) -> Self {
        Self {
            on: On::Isopod,
            ..Self::both(name, body)
        }
    }

    /// Seconds after which it has failed.
    pub const fn within(self, seconds: u64) -> Self {
        Self {
            limit: Duration::from_secs(seconds),
            ..self
        }
    }

    /// What it needs besides containers and, on isopod, isopod.
    pub const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    /// It measures time or memory, or uses much of either: nothing else runs beside it.
    pub const fn alone(self) -> Self {
        Self {
            alone: true,
            ..self
        }
    }

    /// Its image has the probe in it.
    pub const fn with_probe(self) -> Self {
        Self {
            probe: true,
            ..self
        }
    }

    /// On isopod it runs once more, under the newer containerd.
    pub const fn under_both_containerds(self) -> Self {
        Self {
            newer: true,
            ..self
        }
    }

    /// It runs once more on isopod's own monitor, in a pod that all such cases share: it must not mind
    /// containers beside its own.
    pub const fn smoke(self) -> Self {
        Self {
            smoke: Smoke::Shares,
            ..self
        }
    }

    /// The same, but last: nothing of the pod runs when it is done.
    pub const fn smoke_at_the_end(self) -> Self {
        Self {
            smoke: Smoke::Ends,
            ..self
        }
    }

    /// All that it runs on. `monitored`: on isopod's own monitor in any case.
    pub(crate) fn variants(&self, monitored: bool) -> impl Iterator<Item = Variant> + use<> {
        let variant = |runtime| Variant {
            runtime,
            newer: false,
            smoke: false,
        };
        let isopod = variant(Runtime::Isopod);
        let newer = Variant {
            newer: true,
            ..isopod
        };
        let smoke = Variant {
            smoke: true,
            ..isopod
        };
        [
            (self.on == On::Both).then_some(variant(Runtime::Runc)),
            Some(isopod),
            self.newer.then_some(newer),
            (self.smoke != Smoke::No || monitored).then_some(smoke),
        ]
        .into_iter()
        .flatten()
    }

    pub(crate) fn full_name(&self, group: &str, variant: Variant) -> String {
        let on = match variant {
            Variant { smoke: true, .. } => "+kvm-smoke",
            Variant { newer: true, .. } => "+newer-containerd",
            _ => "",
        };
        format!("{}{on}::{group}::{}", variant.runtime.name(), self.name)
    }

    /// Why it cannot run here.
    pub(crate) fn obstacle(&self, machine: &Machine, variant: Variant) -> Option<String> {
        let isopod = (variant.runtime == Runtime::Isopod).then_some(Need::Isopod);
        let newer = variant.newer.then_some(Need::NewerContainerd);
        let smoke = variant.smoke.then_some(Need::Kvm);
        [Need::Containers]
            .into_iter()
            .chain(isopod)
            .chain(newer)
            .chain(smoke)
            .chain(self.needs.iter().copied())
            .find_map(|need| machine.lacks(need))
    }
}
