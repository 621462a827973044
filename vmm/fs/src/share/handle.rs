//! Open files and directories.

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use super::directory::Listing;

/// One open file or directory.
pub(super) struct Handle {
    /// The inode that it was opened by; a request must name both.
    pub node: u64,
    pub opened: Opened,
}

pub(super) enum Opened {
    File {
        file: File,
        /// The status flags that the file has on the host (O_APPEND is what matters).
        flags: AtomicU32,
    },
    Directory(Mutex<Listing>),
}

#[derive(Default)]
pub(super) struct Handles {
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    last: AtomicU64,
}

impl Handles {
    pub fn insert(&self, handle: Handle) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, Arc::new(handle));
        number
    }

    pub fn get(&self, number: u64, node: u64) -> io::Result<Arc<Handle>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let handle = open.get(&number).filter(|handle| handle.node == node);
        handle
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    pub fn remove(&self, number: u64, node: u64) -> io::Result<()> {
        let handle = self.get(number, node)?;
        self.open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number);
        // Closing can take long: after the lock.
        drop(handle);
        Ok(())
    }

    pub fn clear(&self) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let all = std::mem::take(&mut *open);
        drop(open);
        drop(all);
    }
}

impl Handle {
    /// The open file; EBADF for a directory.
    pub fn file(&self) -> io::Result<&File> {
        match &self.opened {
            Opened::File { file, .. } => Ok(file),
            Opened::Directory(_) => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// The open directory; ENOTDIR for a file.
    pub fn listing(&self) -> io::Result<std::sync::MutexGuard<'_, Listing>> {
        match &self.opened {
            Opened::File { .. } => Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
            Opened::Directory(listing) => {
                Ok(listing.lock().unwrap_or_else(PoisonError::into_inner))
            }
        }
    }
}
