//! Out-of-memory kills, from the cgroups' `memory.events`, which the kernel notifies by inotify.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::{
    log,
    pod::{Container, Pod},
};

/// Watches every container's memory.
#[derive(Debug)]
pub(crate) struct OomWatch {
    notify: OwnedFd,
    watched: Mutex<HashMap<i32, Weak<Container>>>,
}

impl OomWatch {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            notify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            watched: Mutex::default(),
        })
    }

    /// Watches a container until its cgroup is gone. Without a memory controller there is nothing to see.
    pub(crate) fn add(&self, container: &Arc<Container>) {
        let path = container.cgroup.path().join("memory.events");
        match self.watch(&path) {
            Ok(number) => {
                self.lock().insert(number, Arc::downgrade(container));
            }
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => log::warning(&format!("watch {path:?}: {e}")),
        }
    }

    fn watch(&self, path: &Path) -> rustix::io::Result<i32> {
        inotify::add_watch(&self.notify, path, WatchFlags::MODIFY)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i32, Weak<Container>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at what the kernel has to say, for ever.
    pub(crate) async fn run(&self, pod: &Pod) -> io::Result<()> {
        let readable = crate::sys::watch(self.notify.try_clone()?)?;
        loop {
            readable.readable().await?.clear_ready();
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(&self.notify, &mut buffer);
            while let Ok(event) = reader.next() {
                let number = event.wd();
                let container = self.lock().get(&number).and_then(Weak::upgrade);
                match container {
                    Some(container) => container.look_for_kills(&pod.events),
                    None => {
                        self.lock().remove(&number);
                        // Gone by itself when its file is.
                        let _ = inotify::remove_watch(&self.notify, number);
                    }
                }
            }
        }
    }

    /// Forgets containers that are gone.
    pub(crate) fn tidy(&self) {
        self.lock()
            .retain(|_, container| container.strong_count() > 0);
    }
}
