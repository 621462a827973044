//! The shared directory as a FUSE file system.

use std::os::fd::OwnedFd;

use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};

/// The file system that guests see.
pub type Share = PassthroughFs;

/// The directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ShareError(std::io::Error);

/// Opens `/`, which is the shared directory in the jail.
pub fn open(_proc: OwnedFd) -> Result<Share, ShareError> {
    let config = Config {
        root_dir: "/".into(),
        do_import: true,
        writeback: false,
        no_open: false,
        xattr: false,
        killpriv_v2: true,
        cache_policy: CachePolicy::Auto,
        ..Config::default()
    };
    PassthroughFs::new(config).map_err(ShareError)
}
