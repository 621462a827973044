//! The annotations that exist. None is honoured unless the configuration allows it; each is a bounded
//! number; none names a path, a binary or a kernel parameter of the host or guest.

use serde::Deserialize;

/// Annotations that begin so are meant for isopod.
pub const ANNOTATION_PREFIX: &str = "io.isopod.";

/// One annotation that can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Annotation {
    /// Replaces `vm.memory_mib` for one pod.
    #[serde(rename = "io.isopod.memory_mib")]
    MemoryMib,
    /// Replaces `vm.cpus` for one pod.
    #[serde(rename = "io.isopod.cpus")]
    Cpus,
}

impl Annotation {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::MemoryMib, Self::Cpus];

    /// The annotation's key.
    pub fn key(self) -> &'static str {
        match self {
            Self::MemoryMib => "io.isopod.memory_mib",
            Self::Cpus => "io.isopod.cpus",
        }
    }

    /// The annotation with this key.
    pub fn from_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.key() == key)
    }
}
