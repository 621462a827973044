//! Where a pod's things are on the host.
//!
//! ```text
//! <state>/<16 hex>/          0700
//!   tree/<container>/        what the shared directory shows; only we can write in it
//!     rootfs/  mounts/<N>
//!   shared/                  `tree`, bound read-only and with a peer group of its own: isopod-fs
//!                            serves it, container mounts are attached in it. Read-only, so that no
//!                            guest can plant a link or a name where the host makes one later.
//!   stage/                   a private mount in which a bind gets its flags before it is shown
//!   ports/vsock_<P>          the guest's way to the host
//!   vsock.sock               the host's way to the guest
//!   monitor.sock             the operator's way to the monitor, where that is isopod-vmm
//! ```

use std::path::{Path, PathBuf};

use isopod_protocol::limits;
use sha2::{Digest, Sha256};

use super::PlanError;

/// A pod's directory and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodPaths {
    pub dir: PathBuf,
}

impl PodPaths {
    /// (namespace, id) is unique on the host and may be long; the directory's name is neither, so
    /// that socket paths fit into `sun_path`.
    pub fn new(state: &Path, namespace: &str, id: &str) -> Self {
        let digest = Sha256::digest(format!("{namespace}/{id}"));
        let name: String = digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            dir: state.join(name),
        }
    }

    pub fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    pub fn stage(&self) -> PathBuf {
        self.dir.join("stage")
    }

    pub fn ports(&self) -> PathBuf {
        self.dir.join("ports")
    }

    pub fn vsock(&self) -> PathBuf {
        self.dir.join("vsock.sock")
    }

    pub fn monitor(&self) -> PathBuf {
        self.dir.join("monitor.sock")
    }

    pub fn port(&self, port: u32) -> PathBuf {
        self.ports().join(format!("vsock_{port}"))
    }

    pub fn container(&self, id: &str) -> ContainerPaths {
        ContainerPaths {
            tree: self.tree().join(id),
            shared: self.shared().join(id),
        }
    }
}

/// A container's directory: `tree` is where its mount points are made, `shared` where its mounts are
/// attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerPaths {
    pub tree: PathBuf,
    pub shared: PathBuf,
}

/// A container or exec id becomes a file name on both sides: containerd's alphabet, no more.
pub(crate) fn check_id(field: &str, id: &str) -> Result<(), PlanError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let plain = id.bytes().all(allowed) && id.bytes().any(|byte| byte != b'.');
    if plain && id.len() <= limits::ID_LEN {
        return Ok(());
    }
    Err(PlanError::invalid(
        field,
        format!(
            "{id:?} is not 1 to {} letters, digits, `_`, `.` or `-`",
            limits::ID_LEN
        ),
    ))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn directory_depends_on_namespace_and_id() {
        let state = Path::new("/run/isopod");
        let one = PodPaths::new(state, "k8s.io", "a");
        assert_eq!(one.dir.file_name().map(|name| name.len()), Some(16));
        assert_ne!(one, PodPaths::new(state, "k8s.io", "b"));
        assert_ne!(one, PodPaths::new(state, "default", "a"));
        assert_eq!(one, PodPaths::new(state, "k8s.io", "a"));
    }

    #[rstest]
    #[case("a", true)]
    #[case("Redis-1_x.y", true)]
    #[case("..a", true)]
    #[case("", false)]
    #[case(".", false)]
    #[case("..", false)]
    #[case("a/b", false)]
    #[case("a\0", false)]
    #[case("é", false)]
    fn ids_are_file_names(#[case] id: &str, #[case] right: bool) {
        assert_eq!(check_id("id", id).is_ok(), right);
    }

    #[test]
    fn ids_are_bounded() {
        assert!(check_id("id", &"a".repeat(limits::ID_LEN)).is_ok());
        assert!(check_id("id", &"a".repeat(limits::ID_LEN + 1)).is_err());
    }
}
