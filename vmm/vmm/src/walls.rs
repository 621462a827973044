//! The jail of a monitor: an empty read-only root, nobody's user, no capability, no way to open or make
//! anything. What it works with it inherited.

use isopod_config::MonitorConfig;
use isopod_jail::{
    Error, FileAccess, Ids, JailConfig, Limit, LimitedResource, Namespaces, Root, TmpfsRoot,
};

/// Descriptors: an eventfd per queue and device, three per vCPU, and what was inherited.
const OPEN_FILES: u64 = 1024;

/// What the file of a saved machine's memory has behind the memory, in bytes.
pub const SAVED_TRAILER: u64 = 4096;

/// Puts up all walls but the system call filters. The process has one thread.
///
/// # Errors
/// The wall that could not be put up.
pub fn enter(config: &MonitorConfig) -> Result<(), Error> {
    let limit = |resource, value| Limit { resource, value };
    JailConfig {
        namespaces: Namespaces::ALL,
        root: Root::Tmpfs(TmpfsRoot::default()),
        ids: Ids {
            uid: config.uid,
            gid: config.gid,
        },
        capabilities: Vec::new(),
        limits: vec![
            limit(LimitedResource::CoreSize, 0),
            limit(LimitedResource::MessageQueues, 0),
            limit(LimitedResource::LockedMemory, 0),
            limit(LimitedResource::OpenFiles, OPEN_FILES),
            // Guest memory, and the file it is saved to, are the only files that it lengthens.
            limit(
                LimitedResource::FileSize,
                config
                    .memory
                    .size_mib
                    .saturating_add(config.slots.hotplug_mib)
                    .saturating_mul(1 << 20)
                    .saturating_add(SAVED_TRAILER),
            ),
        ],
        // No path at all. The root is empty; this is the wall behind it.
        file_access: Some(FileAccess::default()),
    }
    .enter()
}
