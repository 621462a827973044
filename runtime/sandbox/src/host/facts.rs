//! What plans ask of the host.

use std::{io, os::unix::fs::FileTypeExt, path::Path};

use crate::plan::{HostFacts, SourceKind};

/// The host as it is now.
pub(crate) struct Host;

impl HostFacts for Host {
    fn kind_of(&self, path: &Path) -> io::Result<SourceKind> {
        Ok(kind(std::fs::metadata(path)?.file_type()))
    }
}

/// A file type as plans name it.
pub(crate) fn kind(file_type: std::fs::FileType) -> SourceKind {
    if file_type.is_dir() {
        SourceKind::Directory
    } else if file_type.is_file() {
        SourceKind::File
    } else if file_type.is_socket() {
        SourceKind::Other("socket")
    } else if file_type.is_fifo() {
        SourceKind::Other("named pipe")
    } else if file_type.is_block_device() {
        SourceKind::Other("block device")
    } else {
        SourceKind::Other("character device")
    }
}
