//! Requests and settings become plain decisions, before any effect. Pure: what must be known of the
//! host is asked through [`HostFacts`], so that tables can test every decision.

mod annotations;
mod cgroup;
mod container;
mod demand;
mod devices;
mod guest_spec;
mod hooks;
mod labels;
mod mount_options;
mod mounts;
mod paths;
mod pod;
mod size;

use nix::mount::MsFlags;

pub(crate) use container::{ContainerPlan, plan_container, plan_exec};
pub(crate) use demand::{Bounds, Demand, Size};
pub(crate) use guest_spec::translate_resources;
pub(crate) use hooks::{HostHooks, PlacedHook};
pub(crate) use mounts::{BindPlan, Propagation, SourceKind};
pub(crate) use paths::{ContainerPaths, PodPaths};
pub(crate) use pod::{PodPlan, plan_pod};

/// Host mounts never hand the host a device node, a set-user-id bit or a program of the guest.
pub(crate) const UNTRUSTED: MsFlags = MsFlags::MS_NODEV
    .union(MsFlags::MS_NOSUID)
    .union(MsFlags::MS_NOEXEC);

/// A mount of the container's root filesystem on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootfsPlan {
    /// mount(2) of a filesystem, exactly as the caller named it.
    Filesystem {
        fstype: String,
        source: String,
        flags: MsFlags,
        data: String,
    },
    /// A directory of the host, bound.
    Bind {
        source: std::path::PathBuf,
        recursive: bool,
        read_only: bool,
    },
}

/// What a plan must know of the host. Asked, never changed.
pub(crate) trait HostFacts {
    /// What a path is, links followed.
    fn kind_of(&self, path: &std::path::Path) -> std::io::Result<SourceKind>;
}

/// Why a request cannot be planned. Messages begin with the field that is meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// The field's value cannot be right on any host.
    #[error("{field}: {why}")]
    Invalid {
        /// As in the OCI specification's JSON.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// The field is right, but a pod in a virtual machine cannot have it (yet).
    #[error("{field}: {why}")]
    Unsupported {
        /// As in the OCI specification's JSON.
        field: String,
        /// Why not, and what to do instead.
        why: String,
    },
}

impl PlanError {
    fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            why: why.into(),
        }
    }

    fn unsupported(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            why: why.into(),
        }
    }
}

impl From<PlanError> for crate::Error {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Invalid { .. } => Self::InvalidArgument(error.to_string()),
            PlanError::Unsupported { .. } => Self::Unsupported(error.to_string()),
        }
    }
}
