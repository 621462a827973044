//! Inodes that the guest remembers, and how each is reached again.
//!
//! The guest names an inode by a number that it got from a lookup, until it forgets it. Each is held
//! by a descriptor that names it without opening it (O_PATH), so neither a rename nor an unlink can
//! make the number mean another file. But a guest may remember millions, and a process has thousands
//! of descriptors: beyond a limit the least recently used are let go, and reached again by directory
//! and name when needed.
//!
//! ```text
//!             lookup                     over the limit, and the name still leads here
//!   (none) ----------> held by a descriptor ----------------------------------> let go
//!                              ^                                                  |
//!                              +--- reached by name, and it is the same inode ----+
//! ```
//! Whoever takes a name away (unlink, rename) first brings a let-go inode back, so the guest's own
//! doings never lose one. If the host moves a file away at that moment, the guest gets ESTALE.
//! (File handles, which others use for this, would need open_by_handle_at(2): with it a captured
//! server could open any file of the host's file systems; and overlayfs does not support it.)

use std::{
    collections::HashMap,
    ffi::CStr,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;

use super::{
    held::Held,
    identity::{Identity, Reached, stat_by_name},
    inode::Inode,
};

/// A guest that remembers more than this is told ENFILE. At about 250 bytes each, well above what
/// a guest's memory allows its kernel to remember.
const MAX_INODES: usize = 16 << 20;

/// A let-go inode is reached through at most this many let-go directories.
const MAX_DEPTH: usize = 4096;

/// An inode is let go only if its directory is held or reached through at most this many: a deep tree
/// must not make the search for what can be let go a long one.
const NEAR: usize = 8;

#[derive(Default)]
struct Table {
    by_node: HashMap<u64, Remembered>,
    by_identity: HashMap<Identity, u64>,
    last_node: u64,
}

struct Remembered {
    inode: Arc<Inode>,
    /// How often the guest was told of it and has not forgotten it.
    lookups: u64,
}

/// All inodes that the guest remembers.
pub(super) struct Inodes {
    table: RwLock<Table>,
    root: Arc<Inode>,
    /// Inodes that are held by a descriptor.
    held: Mutex<Held<Inode>>,
    limit: usize,
    /// How many may be held before some are let go: the limit, or more if not enough could be.
    look_at: AtomicUsize,
    let_go: AtomicUsize,
    /// Read-locked while a name is taken away, write-locked while an inode is let go by its name.
    naming: RwLock<()>,
}

impl Inodes {
    pub fn new(root: Reached, limit: usize) -> Self {
        let identity = Identity::of(&root, None);
        let root = Inode::new(ROOT_ID, identity, root.fd, None);
        let inodes = Self {
            table: RwLock::default(),
            root,
            held: Mutex::default(),
            limit,
            look_at: AtomicUsize::new(limit),
            let_go: AtomicUsize::new(0),
            naming: RwLock::default(),
        };
        inodes.forget_all();
        inodes
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Held<Inode>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode behind the guest's number.
    pub fn get(&self, node: u64) -> io::Result<Arc<Inode>> {
        let table = self.read();
        let found = table.by_node.get(&node).map(|r| r.inode.clone());
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// A descriptor that names the inode.
    pub fn fd(&self, inode: &Arc<Inode>) -> io::Result<Arc<OwnedFd>> {
        inode.used.store(true, Ordering::Relaxed);
        if let Some(fd) = &inode.way().fd {
            return Ok(fd.clone());
        }
        Ok(self.take_back(inode, inode.walk(MAX_DEPTH)?))
    }

    /// Tells the guest of an inode: its number, counted once more. It was found in `directory`, by `name`
    /// unless it has none.
    pub fn remember(
        &self,
        reached: Reached,
        directory: &Arc<Inode>,
        name: Option<&CStr>,
    ) -> io::Result<Arc<Inode>> {
        let identity = Identity::of(&reached, Some(&directory.identity));
        let seen = name.map(|name| (directory.clone(), name.to_owned()));
        let mut table = self.write();
        if let Some(node) = table.by_identity.get(&identity).copied()
            && let Some(known) = table.by_node.get_mut(&node)
        {
            known.lookups = known.lookups.saturating_add(1);
            let inode = known.inode.clone();
            drop(table);
            let mut way = inode.way();
            // Dropped after the lock: it may be the last of a chain of directories.
            let before = match seen {
                Some(seen) if inode.node != ROOT_ID => way.seen.replace(seen),
                _ => None,
            };
            if way.fd.is_none() {
                way.fd = Some(Arc::new(reached.fd));
                self.let_go.fetch_sub(1, Ordering::Relaxed);
                drop(way);
                self.hold(&inode);
            } else {
                drop(way);
            }
            drop(before);
            inode.used.store(true, Ordering::Relaxed);
            return Ok(inode);
        }
        if table.by_node.len() >= MAX_INODES {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        table.last_node += 1;
        let inode = Inode::new(table.last_node, identity, reached.fd, seen);
        table.by_identity.insert(identity, inode.node);
        table.by_node.insert(
            inode.node,
            Remembered {
                inode: inode.clone(),
                lookups: 1,
            },
        );
        drop(table);
        self.hold(&inode);
        Ok(inode)
    }

    /// The guest has forgotten `lookups` of an inode's lookups.
    pub fn forget(&self, node: u64, lookups: u64) {
        if node == ROOT_ID {
            return;
        }
        let mut table = self.write();
        let Some(known) = table.by_node.get_mut(&node) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return;
        }
        let forgotten = table.by_node.remove(&node).map(|r| r.inode);
        if let Some(inode) = &forgotten {
            if table.by_identity.get(&inode.identity) == Some(&node) {
                table.by_identity.remove(&inode.identity);
            }
            if inode.way().fd.is_none() {
                self.let_go.fetch_sub(1, Ordering::Relaxed);
            }
        }
        // Closing a descriptor can take long (the last one of an unlinked file): not under the lock.
        drop(table);
        if let Some(inode) = forgotten {
            let was_held = inode.way().fd.is_some();
            drop(inode);
            if was_held {
                self.held().forgot_one();
            }
        }
    }

    /// The guest has unmounted.
    pub fn forget_all(&self) {
        let root = Remembered {
            inode: self.root.clone(),
            lookups: 1,
        };
        let fresh = Table {
            by_node: HashMap::from([(ROOT_ID, root)]),
            by_identity: HashMap::from([(self.root.identity, ROOT_ID)]),
            last_node: ROOT_ID,
        };
        let mut table = self.write();
        // Numbers are not used again: a late request must not meet another file.
        let last_node = table.last_node.max(ROOT_ID);
        let forgotten = std::mem::replace(&mut *table, Table { last_node, ..fresh });
        self.let_go.store(0, Ordering::Relaxed);
        drop(table);
        drop(forgotten);
        self.held().clear();
    }

    /// To be held while `names` are taken away or change their meaning. Inodes that could not be
    /// reached afterwards are brought back first.
    pub fn taking_away<'a>(&'a self, names: &[(&Arc<Inode>, &CStr)]) -> RwLockReadGuard<'a, ()> {
        let guard = self.naming.read().unwrap_or_else(PoisonError::into_inner);
        if self.let_go.load(Ordering::Relaxed) == 0 {
            return guard;
        }
        for (directory, name) in names {
            // What does not exist, or was never told to the guest, needs no care.
            let reached = self.fd(directory).and_then(|fd| Reached::by_name(fd, name));
            let Ok(reached) = reached else {
                continue;
            };
            let identity = Identity::of(&reached, Some(&directory.identity));
            let known = {
                let table = self.read();
                let node = table.by_identity.get(&identity);
                node.and_then(|node| table.by_node.get(node))
                    .map(|r| r.inode.clone())
            };
            if let Some(inode) = known {
                self.take_back(&inode, Arc::new(reached.fd));
            }
        }
        guard
    }

    fn take_back(&self, inode: &Arc<Inode>, fd: Arc<OwnedFd>) -> Arc<OwnedFd> {
        let mut way = inode.way();
        if let Some(fd) = &way.fd {
            return fd.clone();
        }
        way.fd = Some(fd.clone());
        drop(way);
        self.let_go.fetch_sub(1, Ordering::Relaxed);
        self.hold(inode);
        fd
    }

    /// Counts one more inode that is held, and lets others go if these are too many.
    fn hold(&self, inode: &Arc<Inode>) {
        let mut held = self.held();
        held.push(inode);
        if held.len() <= self.look_at.load(Ordering::Relaxed) {
            return;
        }
        // A few more than needed, so that this is not done for every single one; each is looked at
        // at most twice.
        let target = self.limit - self.limit / 16;
        let mut candidates = Vec::new();
        for _ in 0..held.len().saturating_mul(2) {
            if held.len() <= target {
                break;
            }
            match held.pop() {
                None => break,
                Some(None) => {}
                Some(Some(inode)) if inode.used.swap(false, Ordering::Relaxed) => {
                    held.push(&inode);
                }
                Some(Some(inode)) => candidates.push(inode),
            }
        }
        drop(held);
        let mut kept = Vec::new();
        for inode in candidates {
            if !self.let_go(&inode) {
                kept.push(Arc::downgrade(&inode));
            }
        }
        let mut held = self.held();
        held.extend(kept);
        // So that a guest which holds on to unlinked files does not cost a search for each new one.
        let next = self.limit.max(held.len().saturating_add(self.limit / 16));
        self.look_at.store(next, Ordering::Relaxed);
    }

    /// Closes the inode's descriptor if its name still leads to it. (Unlinked files and those that
    /// the host has moved keep theirs.)
    fn let_go(&self, inode: &Arc<Inode>) -> bool {
        let Some((directory, name)) = inode.way().seen.clone() else {
            return false;
        };
        // Reached without holding what is on the way: holding could let go of more, without end.
        let Ok(directory) = directory.walk(NEAR) else {
            return false;
        };
        let Ok(_alone) = self.naming.try_write() else {
            return false;
        };
        let same = stat_by_name(&directory, &name).is_ok_and(|stat| inode.identity.is_of(&stat));
        if same && inode.way().fd.take().is_some() {
            self.let_go.fetch_add(1, Ordering::Relaxed);
        }
        same
    }
}
