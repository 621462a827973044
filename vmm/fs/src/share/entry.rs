//! Names: looking up, making, linking, renaming, removing.

use std::{ffi::CStr, io, os::fd::OwnedFd, sync::Arc};

use fuse_backend_rs::{
    abi::fuse_abi::{CreateIn, FOPEN_IN_KILL_SUIDGID},
    api::filesystem::{Context, Entry},
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};

use super::{
    Share,
    file::{OpenedFile, allowed_flags},
    identity::Reached,
    inode::Inode,
    name::component,
    thread,
};

impl Share {
    pub(super) fn find(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = component(name)?;
        let parent = self.inodes.get(parent)?;
        let directory = self.inodes.fd(&parent)?;
        self.told(&parent, name, Reached::by_name(&directory, name)?)
    }

    /// Remembers what was reached by this name and describes it.
    pub(super) fn told(
        &self,
        parent: &Arc<Inode>,
        name: &CStr,
        reached: Reached,
    ) -> io::Result<Entry> {
        let stat = reached.stat;
        let inode = self.inodes.remember(reached, parent, Some(name))?;
        Ok(self.entry(&inode, &stat, parent))
    }

    /// Makes something with a name, as the caller, and looks it up.
    fn make(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        umask: u32,
        make: impl FnOnce(&OwnedFd, &CStr) -> rustix::io::Result<()>,
    ) -> io::Result<Entry> {
        let name = component(name)?;
        let parent = self.inodes.get(parent)?;
        let directory = self.inodes.fd(&parent)?;
        thread::make_as(&self.proc, caller.uid, caller.gid, umask)?;
        make(&directory, name)?;
        self.told(&parent, name, Reached::by_name(&directory, name)?)
    }

    pub(super) fn make_directory(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make(caller, parent, name, umask, |directory, name| {
            rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(mode & 0o7777))
        })
    }

    pub(super) fn make_node(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.make(caller, parent, name, umask, |directory, name| {
            let kind = FileType::from_raw_mode(mode);
            rustix::fs::mknodat(
                directory,
                name,
                kind,
                Mode::from_raw_mode(mode & 0o7777),
                device.into(),
            )
        })
    }

    pub(super) fn make_link(
        &self,
        caller: &Context,
        target: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        // The target is data: nothing on the host ever follows it.
        self.make(caller, parent, name, 0, |directory, name| {
            rustix::fs::symlinkat(target, directory, name)
        })
    }

    pub(super) fn link_again(&self, node: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = component(name)?;
        let inode = self.inodes.get(node)?;
        let parent = self.inodes.get(parent)?;
        let (fd, directory) = (self.inodes.fd(&inode)?, self.inodes.fd(&parent)?);
        rustix::fs::linkat(&fd, c"", &directory, name, AtFlags::EMPTY_PATH)?;
        self.told(&parent, name, Reached::by_name(&directory, name)?)
    }

    pub(super) fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> io::Result<()> {
        let name = component(name)?;
        let parent = self.inodes.get(parent)?;
        let directory = self.inodes.fd(&parent)?;
        let _naming = self.inodes.taking_away(&[(&parent, name)]);
        Ok(rustix::fs::unlinkat(&directory, name, flags)?)
    }

    pub(super) fn move_entry(
        &self,
        (from, old): (u64, &CStr),
        (to, new): (u64, &CStr),
        flags: u32,
    ) -> io::Result<()> {
        let (old, new) = (component(old)?, component(new)?);
        let (from, to) = (self.inodes.get(from)?, self.inodes.get(to)?);
        let (from_fd, to_fd) = (self.inodes.fd(&from)?, self.inodes.fd(&to)?);
        let _naming = self.inodes.taking_away(&[(&from, old), (&to, new)]);
        Ok(rustix::fs::renameat_with(
            &from_fd,
            old,
            &to_fd,
            new,
            RenameFlags::from_bits_retain(flags),
        )?)
    }

    pub(super) fn target(&self, node: u64) -> io::Result<Vec<u8>> {
        let fd = self.inodes.fd(&self.inodes.get(node)?)?;
        Ok(rustix::fs::readlinkat(&fd, c"", Vec::with_capacity(256))?.into_bytes())
    }

    /// Makes and opens a file; one that is there already is opened unless O_EXCL forbids it.
    pub(super) fn make_file(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        request: CreateIn,
    ) -> io::Result<(Entry, OpenedFile)> {
        let name = component(name)?;
        let parent = self.inodes.get(parent)?;
        let directory = self.inodes.fd(&parent)?;
        let asked = OFlags::from_bits_retain(request.flags);
        let flags = allowed_flags(request.flags);
        let mode = Mode::from_raw_mode(request.mode & 0o7777);
        thread::make_as(&self.proc, caller.uid, caller.gid, request.umask)?;
        let create = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        match rustix::fs::openat(&directory, name, create, mode) {
            Ok(fd) => {
                // By descriptor, not by name: the name may be another file's by now.
                let named = self.name_again(&fd)?;
                let entry = self.told(&parent, name, Reached::new(named)?)?;
                Ok((entry, self.opened(entry.inode, fd, flags)))
            }
            Err(rustix::io::Errno::EXIST) if !asked.contains(OFlags::EXCL) => {
                let entry = self.told(&parent, name, Reached::by_name(&directory, name)?)?;
                let kill = request.fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
                match self.open_file(entry.inode, request.flags, kill) {
                    Ok(opened) => Ok((entry, opened)),
                    Err(error) => {
                        self.inodes.forget(entry.inode, 1);
                        Err(error)
                    }
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A file without a name in a directory (O_TMPFILE).
    pub(super) fn make_nameless(
        &self,
        caller: &Context,
        parent: u64,
        request: CreateIn,
    ) -> io::Result<(Entry, OpenedFile)> {
        let parent = self.inodes.get(parent)?;
        let directory = self.inodes.fd(&parent)?;
        // O_EXCL means here that the file shall never get a name.
        let exclusive = OFlags::from_bits_retain(request.flags) & OFlags::EXCL;
        let flags = allowed_flags(request.flags) - OFlags::TRUNC;
        let mode = Mode::from_raw_mode(request.mode & 0o7777);
        thread::make_as(&self.proc, caller.uid, caller.gid, request.umask)?;
        let fd = rustix::fs::openat(&directory, c".", flags | OFlags::TMPFILE | exclusive, mode)?;
        let reached = Reached::new(self.name_again(&fd)?)?;
        let stat = reached.stat;
        let inode = self.inodes.remember(reached, &parent, None)?;
        let entry = self.entry(&inode, &stat, &parent);
        Ok((entry, self.opened(entry.inode, fd, flags)))
    }

    /// A descriptor that only names what an open one has opened.
    fn name_again(&self, fd: &OwnedFd) -> io::Result<OwnedFd> {
        let name = super::attributes::descriptor_name(fd);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(
            &self.proc,
            name.as_c_str(),
            flags,
            Mode::empty(),
        )?)
    }
}
