//! A jail as plain data.

use std::path::PathBuf;

use caps::Capability;

/// All walls but the system call filter, which is installed once the process has its threads.
#[derive(Clone, Debug)]
pub struct JailConfig {
    /// Namespaces to leave. (A PID namespace is made by the parent: only a child enters one.)
    pub namespaces: Namespaces,
    /// What the process sees as `/`.
    pub root: Root,
    /// The user to become.
    pub ids: Ids,
    /// Capabilities that stay permitted and effective; all others leave the bounding set too.
    pub capabilities: Vec<Capability>,
    /// Resource limits. They only ever lower.
    pub limits: Vec<Limit>,
    /// Path access, on top of file permissions; `None` leaves landlock out.
    pub file_access: Option<FileAccess>,
}

/// Namespaces that are left behind for new, empty ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Mounts; needed by every [`Root`] but `Inherited`.
    pub mount: bool,
    /// Network: not even loopback is up in the new one.
    pub network: bool,
    /// System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// The view of the cgroup tree.
    pub cgroup: bool,
}

impl Namespaces {
    /// Every kind.
    pub const ALL: Self = Self {
        mount: true,
        network: true,
        ipc: true,
        uts: true,
        cgroup: true,
    };
}

/// The root directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// The host's.
    Inherited,
    /// A directory that is a mount point. Mounts that the host makes later in it arrive when the
    /// host's mount is shared: the jail's copy is its slave. The jail's own mounts stay in the jail.
    Directory(PathBuf),
    /// A new read-only tmpfs with nothing but what is bound into it.
    Tmpfs(TmpfsRoot),
}

/// What a tmpfs root holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TmpfsRoot {
    /// Files and directories of the host.
    pub binds: Vec<Bind>,
    /// Empty directories.
    pub directories: Vec<PathBuf>,
}

/// One file or directory of the host in the new root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Path on the host. When the path itself is a symbolic link, the link is made anew in the new
    /// root instead (`/lib -> usr/lib`).
    pub source: PathBuf,
    /// Absolute path in the new root.
    pub target: PathBuf,
    /// What may be done there.
    pub access: BindAccess,
    /// A missing source is no error.
    pub optional: bool,
}

/// What may be done in a bind. Set-user-id bits never count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindAccess {
    /// Reading and executing; device nodes do not open.
    ReadOnly,
    /// One device node, to be opened for reading and writing.
    Device,
}

/// The user to become. Supplementary groups are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// User id; 0 stays root (with the capabilities of the configuration only).
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// One resource limit, soft and hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub resource: LimitedResource,
    /// How much, in setrlimit(2)'s unit. Where the present hard limit is lower, that one stays.
    pub value: u64,
}

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedResource {
    /// Size of core dumps, bytes.
    CoreSize,
    /// Open descriptors: highest number plus one.
    OpenFiles,
    /// Size of files that are written, bytes.
    FileSize,
    /// Processes of the same user.
    Processes,
    /// Locked memory, bytes.
    LockedMemory,
    /// Bytes in POSIX message queues.
    MessageQueues,
}

/// landlock rules: what is not named is denied, as are TCP, signals to and abstract sockets of
/// processes outside, as far as the kernel knows these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileAccess {
    /// Reading, listing and executing beneath these.
    pub read_execute: Vec<PathBuf>,
    /// Everything that can be done with a device node.
    pub devices: Vec<PathBuf>,
}
