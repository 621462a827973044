//! The jail of this process: which walls, and why these.

use std::path::Path;

use isopod_jail::{Capability, Error, Ids, JailConfig, Limit, LimitedResource, Namespaces, Root};

/// What serving files as other users takes. Root keeps its number, because files are made by
/// switching the file system user id back and forth, but of root's powers only these.
pub const CAPABILITIES: &[Capability] = &[
    // Owners as the guest sets them.
    Capability::CAP_CHOWN,
    // The guest's kernel has checked permissions already, with knowledge that this process lacks
    // (supplementary groups, the guest's own capabilities).
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    // chmod, utimes, xattrs of files of others.
    Capability::CAP_FOWNER,
    // Set-id bits survive where the guest's kernel decided that they do.
    Capability::CAP_FSETID,
    // Switching the file system user and group id per request.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    // Device nodes in images and layers. Here they are worth nothing: the mount is nodev and only
    // regular files and directories are ever opened.
    Capability::CAP_MKNOD,
    // security.capability, as container images carry it.
    Capability::CAP_SETFCAP,
];

/// Open descriptors at most, where the host allows as many.
const OPEN_FILES: u64 = 1 << 20;

/// Puts up all walls but the system call filter. The root becomes the shared directory, which must be
/// a mount point.
///
/// # Errors
/// The wall that could not be put up.
pub fn enter(shared_dir: &Path) -> Result<(), Error> {
    JailConfig {
        namespaces: Namespaces::ALL,
        root: Root::Directory(shared_dir.to_owned()),
        ids: Ids { uid: 0, gid: 0 },
        capabilities: CAPABILITIES.to_vec(),
        limits: vec![
            Limit {
                resource: LimitedResource::CoreSize,
                value: 0,
            },
            Limit {
                resource: LimitedResource::MessageQueues,
                value: 0,
            },
            Limit {
                resource: LimitedResource::LockedMemory,
                value: 0,
            },
            Limit {
                resource: LimitedResource::OpenFiles,
                value: 1 << 20,
            },
        ],
        // The root is the wall; a rule for `/` with all rights would add only the cost of its checks.
        file_access: None,
    }
    .enter()
}

/// How many descriptors remembered inodes may take: three quarters of what the process may have, the
/// rest is for the files that the guest opens; and not so many that the host's memory for them matters.
#[must_use]
pub fn descriptors_for_inodes() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // None: no limit at all.
    let limit = limit.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    usize::try_from((limit - limit / 4).min(64 << 10))
        .unwrap_or(usize::MAX)
        .saturating_sub(64)
        .max(64)
}
