//! What agent and `init` tell each other. Both are the same binary, so the format needs no versions.

use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::spec::namespace;

/// What `init` is to do. Travels as JSON in a memfd, beside the descriptors listed by [`Layout`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub task: Task,
    pub terminal: bool,
    pub layout: Layout,
}

/// Which descriptors came with the job, in this order: the job itself, the cgroup's directory (if any), the
/// three streams (unless there is a terminal), then the joins.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Layout {
    pub cgroup: bool,
    pub joins: Vec<Join>,
}

/// What the descriptor of a join is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Join {
    Ipc,
    Uts,
    User,
    /// A pid namespace.
    Pid,
    /// A pidfd of a container's init: all its namespaces.
    Everything,
}

/// Namespaces that an exec joins besides those that every container has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Also {
    /// The container is in a user namespace.
    pub user: bool,
    /// The container is in a time namespace.
    pub time: bool,
}

impl Also {
    /// What a container's specification asks for.
    pub fn of(spec: &Spec) -> Self {
        let has = |kind| {
            spec.linux()
                .as_ref()
                .is_some_and(|linux| namespace(linux, kind).is_some())
        };
        Self {
            user: has(LinuxNamespaceType::User),
            time: has(LinuxNamespaceType::Time),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Become a container's first process.
    Create {
        spec: Box<Spec>,
        /// An empty directory of the guest on which the root filesystem is put together.
        anchor: std::path::PathBuf,
    },
    /// Become one more process of a container.
    Exec {
        process: Box<Process>,
        /// The container's filter.
        seccomp: Option<Box<LinuxSeccomp>>,
        also: Also,
    },
}

impl Task {
    /// The process that is to be; a specification without one is refused elsewhere.
    pub(crate) fn process(&self) -> Option<&Process> {
        match self {
            Self::Create { spec, .. } => spec.process().as_ref(),
            Self::Exec { process, .. } => Some(process),
        }
    }
}

/// What `init` tells. One message each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    Forked(i32),
    /// All is done but exec. A terminal's master comes with it.
    Ready,
    Failed(Failure),
}

/// Why a process could not be made, as `init` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// A field of the specification; the message begins with its JSON path.
    Spec,
    /// The command, its working directory or its user.
    Command,
    /// The guest.
    System,
}
