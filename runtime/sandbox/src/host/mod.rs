//! Effects on the host: directories, mounts, processes, and the record of them.

pub(crate) mod artifact;
pub(crate) mod cgroup;
pub(crate) mod container;
pub(crate) mod facts;
pub(crate) mod hooks;
pub(crate) mod mount;
mod overlay;
pub(crate) mod owed;
#[cfg(test)]
pub(crate) mod own_mounts;
pub(crate) mod pod_dir;
pub(crate) mod process;
pub(crate) mod readable;
pub(crate) mod record;
pub(crate) mod spawner;

use std::{io, path::PathBuf};

/// An act on the host that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// A system call on a path.
    #[error("{act} {}: {source}", path.display())]
    Path {
        /// The act, as a verb.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A filesystem could not be mounted.
    #[error("mount {fstype} from {from} at {}: {source}", path.display())]
    Mount {
        /// overlay, ext4, ...
        fstype: String,
        /// Device, directory or label.
        from: String,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A bind's source changed between plan and mount.
    #[error("{} is no longer what it was when the container was planned", path.display())]
    Changed {
        /// The source.
        path: PathBuf,
    },
    /// Something is in a directory that this program did not put there.
    #[error("{} is not empty: left as it is", path.display())]
    Foreign {
        /// What stays.
        path: PathBuf,
    },
    /// A program could not be started.
    #[error("start {}: {source}; {remedy}", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The thread that starts programs is gone.
    #[error("the spawner thread ended")]
    Spawner,
    /// A process did not end although it was killed.
    #[error("{name} (pid {pid}) did not end within {seconds} s of SIGKILL")]
    Unkillable {
        /// Which.
        name: String,
        /// The host's pid.
        pid: u32,
        /// How long we waited.
        seconds: u64,
    },
    /// A file that a virtual machine is made of.
    #[error(transparent)]
    Artifact(#[from] artifact::ArtifactError),
}

impl HostError {
    pub(crate) fn path<E: Into<io::Error>>(
        act: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Path {
            act,
            path,
            source: source.into(),
        }
    }
}

impl From<HostError> for crate::Error {
    fn from(error: HostError) -> Self {
        Self::Failed(error.to_string())
    }
}
