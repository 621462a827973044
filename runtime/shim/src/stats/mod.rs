//! A container's cgroup v2 files, as the guest has them, as one of containerd's two metrics messages.
//!
//! containerd and those behind it (its metrics endpoint, the CRI's stats, cAdvisor) expect the message of
//! the cgroup version that the host has: a container of runc would have no other.
//!
//! The guest is the pod's own: its numbers are shown, never trusted. What cannot be read is 0.

mod files;
mod v1;
mod v2;

use containerd_shim_protos::{
    protobuf::{Message, well_known_types::any::Any},
    ttrpc::{self, Code},
};
use isopod_sandbox::Stats;

use crate::convert;

/// A cgroup version, and so a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `io.containerd.cgroups.v1.Metrics`.
    V1,
    /// `io.containerd.cgroups.v2.Metrics`.
    V2,
}

impl Version {
    /// What the host has: version 2 where its tree is mounted alone (cgroups(7)), as containerd decides.
    pub fn of_host() -> Self {
        match rustix::fs::statfs("/sys/fs/cgroup") {
            Ok(found) if found.f_type == libc::CGROUP2_SUPER_MAGIC => Self::V2,
            _ => Self::V1,
        }
    }
}

/// The metrics, packed as Stats answers them.
pub fn pack(version: Version, files: &Stats) -> ttrpc::Result<Any> {
    let (type_url, value) = match version {
        Version::V1 => (v1::TYPE, v1::metrics(files).write_to_bytes()),
        Version::V2 => (v2::TYPE, v2::metrics(files).write_to_bytes()),
    };
    let value = value.map_err(|error| {
        convert::status_error(Code::INTERNAL, format!("encoding metrics: {error}"))
    })?;
    Ok(Any {
        type_url: type_url.to_owned(),
        value,
        ..Any::default()
    })
}

#[cfg(test)]
mod testing {
    use isopod_sandbox::Stats;

    pub fn files(pairs: &[(&str, &str)]) -> Stats {
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        pairs.iter().map(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::{cgroups, cgroups_v2};

    use super::{testing::files, *};

    #[test]
    fn packed_under_containerds_names() {
        let files = files(&[("pids.current", "3")]);
        let one = pack(Version::V1, &files).expect("encodes");
        assert_eq!(one.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = cgroups::metrics::Metrics::parse_from_bytes(&one.value).expect("decodes");
        assert_eq!(metrics.pids.current, 3);
        let two = pack(Version::V2, &files).expect("encodes");
        assert_eq!(two.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&two.value).expect("decodes");
        assert_eq!(metrics.pids.current, 3);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text: String) {
            for name in ["cpu.stat", "memory.stat", "memory.max", "io.stat", "pids.max"] {
                for version in [Version::V1, Version::V2] {
                    let _ = pack(version, &files(&[(name, &text)]));
                }
            }
        }
    }
}
