//! Paths in the guest that host and agent agree on.

/// Where the agent mounts the pod's shared directory (virtio-fs).
pub const SHARED: &str = "/run/isopod/shared";
/// The virtio-fs tag of the shared directory.
pub const SHARED_TAG: &str = "shared";
/// The agent in the guest image: the kernel's `init=`.
pub const AGENT: &str = "/sbin/isopod-agent";

/// A tmpfs (mode 1777) of the guest that the agent mounts at boot: /dev/shm of every container of a
/// pod, given to it as a bind mount, as Kubernetes' pod-wide /dev/shm is on the host.
pub const POD_SHM: &str = "/run/isopod/shm";

/// A container's directory below the shared one: `rootfs` and `mounts/N` live in it, on both sides.
pub fn container_dir(container_id: &str) -> String {
    format!("{SHARED}/{container_id}")
}
