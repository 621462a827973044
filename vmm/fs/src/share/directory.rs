//! Listing directories.

use std::{
    collections::VecDeque,
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{OFlags, RawDir, SeekFrom};

use super::{
    Share,
    handle::{Handle, Opened},
    identity::Reached,
    inode::Inode,
};

/// What one getdents64(2) reads at most; the guest asks for a page at a time.
const BATCH: usize = 32 << 10;

/// An open directory and what was read ahead from it.
pub(super) struct Listing {
    directory: OwnedFd,
    ahead: VecDeque<Item>,
    /// The position (as getdents64(2) counts) of the first item ahead, or of the next to be read.
    position: u64,
}

#[derive(Clone)]
struct Item {
    name: CString,
    number: u64,
    kind: u32,
    /// The position after it.
    next: u64,
}

impl Listing {
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The item at a position; None at the end.
    fn at(&mut self, position: u64) -> io::Result<Option<&Item>> {
        if position != self.position {
            self.ahead.clear();
            rustix::fs::seek(&self.directory, SeekFrom::Start(position))?;
            self.position = position;
        }
        if self.ahead.is_empty() {
            self.read_ahead()?;
        }
        Ok(self.ahead.front())
    }

    /// The first item is done with.
    fn step(&mut self) {
        if let Some(item) = self.ahead.pop_front() {
            self.position = item.next;
        }
    }

    fn read_ahead(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BATCH];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            self.ahead.push_back(Item {
                name: entry.file_name().to_owned(),
                number: entry.ino(),
                kind: kind_number(entry.file_type()),
                next: entry.next_entry_cookie(),
            });
            // One batch only: another call would follow when the buffer is used up.
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }
}

/// `d_type` of getdents64(2): the file type bits of a mode, shifted.
fn kind_number(kind: rustix::fs::FileType) -> u32 {
    kind.as_raw_mode() >> 12
}

impl Share {
    pub(super) fn open_directory(&self, node: u64) -> io::Result<u64> {
        let inode = self.inodes.get(node)?;
        let directory = self.open_again(&inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let listing = Listing {
            directory,
            ahead: VecDeque::new(),
            position: 0,
        };
        let opened = Opened::Directory(Mutex::new(listing));
        Ok(self.handles.insert(Handle { node, opened }))
    }

    pub(super) fn list(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, node)?;
        let mut listing = handle.listing()?;
        let mut position = offset;
        while let Some(item) = listing.at(position)? {
            position = item.next;
            if add(entry_of(item))? == 0 {
                return Ok(());
            }
            listing.step();
        }
        Ok(())
    }

    pub(super) fn list_with_attributes(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let parent = self.inodes.get(node)?;
        let handle = self.handles.get(handle, node)?;
        let mut listing = handle.listing()?;
        let mut position = offset;
        while let Some(item) = listing.at(position)?.cloned() {
            position = item.next;
            let entry = self.entry_in(&parent, listing.descriptor(), &item.name);
            let told = entry.inode;
            let added = add(entry_of(&item), entry);
            if !matches!(added, Ok(bytes) if bytes > 0) {
                // The guest does not get this one.
                if told != 0 {
                    self.inodes.forget(told, 1);
                }
                return added.map(drop);
            }
            listing.step();
        }
        Ok(())
    }

    /// An entry with attributes; without (inode 0) for `.` and `..` and for what is gone again.
    fn entry_in(&self, parent: &Arc<Inode>, directory: BorrowedFd<'_>, name: &CStr) -> Entry {
        if matches!(name.to_bytes(), b"." | b"..") {
            return Entry::default();
        }
        let reached = Reached::by_name(directory, name);
        reached
            .and_then(|reached| self.told(parent, name, reached))
            .unwrap_or_default()
    }

    pub(super) fn sync_directory(&self, node: u64, handle: u64, data_only: bool) -> io::Result<()> {
        let handle = self.handles.get(handle, node)?;
        let listing = handle.listing()?;
        let fd = listing.descriptor();
        Ok(if data_only {
            rustix::fs::fdatasync(fd)
        } else {
            rustix::fs::fsync(fd)
        }?)
    }
}

fn entry_of(item: &Item) -> DirEntry<'_> {
    DirEntry {
        ino: item.number,
        offset: item.next,
        type_: item.kind,
        name: item.name.to_bytes(),
    }
}
