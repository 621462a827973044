//! What a caller asks of a sandbox, in our own types: the caller decodes its protocol once.

use std::path::PathBuf;

use isopod_settings::Settings;
use oci_spec::runtime::{Process, Spec};

/// A pod to start: its identity, and the first container's spec for sizing and annotations.
#[derive(Clone, Debug)]
pub struct SandboxRequest {
    /// containerd's namespace, or a similar scope: (namespace, id) is unique on the host.
    pub namespace: String,
    /// The pod's id.
    pub id: String,
    /// The first container's bundle: what the pod owns is recorded here.
    pub bundle: PathBuf,
    /// The operator's configuration.
    pub settings: Settings,
    /// The first container's spec.
    pub spec: Spec,
}

/// A container to create.
#[derive(Clone, Debug)]
pub struct ContainerRequest {
    /// Unique in the pod.
    pub id: String,
    /// The OCI bundle; a relative `root.path` begins here.
    pub bundle: PathBuf,
    /// The bundle's config.json.
    pub spec: Spec,
    /// Mounts that make the root filesystem; empty when the bundle's `root.path` holds it already.
    pub rootfs: Vec<RootfsMount>,
    /// Which streams to connect.
    pub stdio: StdioRequest,
}

/// A process to add to a container.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// What to run.
    pub process: Process,
    /// Which streams to connect; `terminal` wins over `process.terminal`.
    pub stdio: StdioRequest,
}

/// mount(2)'s arguments, as containerd gives them (options not yet split into flags and data).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootfsMount {
    /// overlay, bind, ext4, ...
    pub fstype: String,
    /// Device, directory or label.
    pub source: String,
    /// Options, one each.
    pub options: Vec<String>,
}

/// Which standard streams a process gets. What is false is /dev/null in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StdioRequest {
    /// A pty: `stdout` carries its output, `stderr` is ignored.
    pub terminal: bool,
    /// Connect standard input.
    pub stdin: bool,
    /// Connect standard output.
    pub stdout: bool,
    /// Connect standard error.
    pub stderr: bool,
}

/// Names a process: a container's init, or an exec of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The container.
    pub container: String,
    /// Empty for init.
    pub exec: String,
}
