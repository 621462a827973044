//! Putting the walls up, in the one order that works.

use std::fs;

use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use crate::{
    Error, JailConfig, Limit, LimitedResource, Namespaces, Root, landlock, privileges, root,
};

impl JailConfig {
    /// Enters. On failure the process is neither free nor confined: it must exit.
    ///
    /// The order: limits while nothing is lost; namespaces and root while privileged; capabilities,
    /// user, `no_new_privs`; landlock (which wants `no_new_privs`); at last the death signal, which
    /// every change of user clears.
    ///
    /// # Errors
    /// The step that failed.
    pub fn enter(&self) -> Result<(), Error> {
        // A thread that exists already would stay outside.
        let threads = fs::read_dir("/proc/self/task")
            .map_err(Error::CountThreads)?
            .count();
        if threads != 1 {
            return Err(Error::Threads(threads));
        }
        self.limits.iter().try_for_each(lower)?;
        leave_namespaces(self.namespaces)?;
        match &self.root {
            Root::Inherited => {}
            Root::Directory(directory) => root::pivot_into_directory(directory)?,
            Root::Tmpfs(tmpfs) => root::pivot_into_tmpfs(tmpfs)?,
        }
        privileges::reduce(self.ids, &self.capabilities)?;
        if let Some(access) = &self.file_access {
            landlock::restrict(access)?;
        }
        privileges::die_with_parent()
    }
}

fn leave_namespaces(namespaces: Namespaces) -> Result<(), Error> {
    let Namespaces {
        mount,
        network,
        ipc,
        uts,
        cgroup,
    } = namespaces;
    let flags = [
        (mount, CloneFlags::CLONE_NEWNS),
        (network, CloneFlags::CLONE_NEWNET),
        (ipc, CloneFlags::CLONE_NEWIPC),
        (uts, CloneFlags::CLONE_NEWUTS),
        (cgroup, CloneFlags::CLONE_NEWCGROUP),
    ]
    .into_iter()
    .filter_map(|(wanted, flag)| wanted.then_some(flag))
    .fold(CloneFlags::empty(), CloneFlags::union);
    unshare(flags).map_err(|e| Error::Namespaces(e.into()))?;
    if uts {
        // A new UTS namespace begins with the host's name in it.
        nix::unistd::sethostname("isopod").map_err(|e| Error::HostName(e.into()))?;
    }
    Ok(())
}

fn lower(limit: &Limit) -> Result<(), Error> {
    let (resource, name) = match limit.resource {
        LimitedResource::CoreSize => (Resource::RLIMIT_CORE, "the size of core dumps"),
        LimitedResource::OpenFiles => (Resource::RLIMIT_NOFILE, "open descriptors"),
        LimitedResource::FileSize => (Resource::RLIMIT_FSIZE, "the size of files"),
        LimitedResource::Processes => (Resource::RLIMIT_NPROC, "processes"),
        LimitedResource::LockedMemory => (Resource::RLIMIT_MEMLOCK, "locked memory"),
        LimitedResource::MessageQueues => (Resource::RLIMIT_MSGQUEUE, "message queues"),
    };
    let failed = |e: nix::Error| Error::Limit {
        resource: name,
        value: limit.value,
        source: e.into(),
    };
    let (_, hard) = getrlimit(resource).map_err(failed)?;
    let value = limit.value.min(hard);
    setrlimit(resource, value, value).map_err(failed)
}
