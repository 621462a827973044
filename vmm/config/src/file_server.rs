//! What one `isopod-fs` process is told: JSON on its standard input, then end of file.
//!
//! Descriptors are inherited; the configuration names their numbers.

use std::{os::fd::RawFd, path::PathBuf};

use serde::{Deserialize, Serialize};

/// One file server: one VM's shared directory and, under QEMU, its vsock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileServerConfig {
    /// For logs; the pod's id.
    pub name: String,
    /// The directory to serve. Must be a mount point; it becomes the root of the server's jail, and
    /// mounts made in it later arrive by slave propagation.
    pub shared_dir: PathBuf,
    /// A *listening* AF_UNIX socket for the vhost-user front end of the virtio-fs device.
    pub fs_listener: RawFd,
    /// Request queues that the device offers at most.
    pub request_queues: u16,
    /// Descriptors per queue at most.
    pub queue_size: u16,
    /// Serve a vsock device too.
    pub vsock: Option<VsockBackendConfig>,
    /// A pipe or socket whose other end only the owner of the pod holds: when it closes, the server
    /// ends. This is how nothing stays behind a killed shim.
    pub lifeline: RawFd,
    /// One line (`ready\n`) is written here when the jail stands and the listeners are served.
    pub ready: RawFd,
}

/// The vsock device as a vhost-user back end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockBackendConfig {
    /// A listening AF_UNIX socket for the vhost-user front end.
    pub listener: RawFd,
    /// A listening AF_UNIX socket for host programs: they send `CONNECT port\n` and are answered
    /// `OK host_port\n` once the guest has accepted.
    pub host_listener: RawFd,
    /// Guest-initiated connections to host port P go to the AF_UNIX socket `connect_dir/vsock_P`.
    pub connect_dir: PathBuf,
    /// The guest's context id.
    pub guest_cid: u32,
}
