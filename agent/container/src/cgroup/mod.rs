//! A container's cgroup in the guest's v2 tree: `<root>/container-<id>`.
//!
//! The prefix keeps ids apart from the kernel's own files. The root is a parameter, so that a fake tree
//! can stand in.

pub mod devices;
pub mod limits;

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use limits::Setting;

/// What the container needs from the tree's root.
const CONTROLLERS: &[&str] = &["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];

/// What failed on a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// mkdir.
    #[error("make cgroup {path}: {source}")]
    Make {
        /// Directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit was refused by the kernel, or its controller is missing.
    #[error("{field}: write {value:?} to {file}: {source}")]
    Set {
        /// The specification's field.
        field: String,
        /// The cgroup's file.
        file: String,
        /// What was to be written.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// The device rules cannot be enforced.
    #[error("linux.resources.devices: {act}: {source}")]
    Devices {
        /// What was tried.
        act: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A control file could not be read or written.
    #[error("access {path}: {source}")]
    Access {
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// rmdir: something still lives there.
    #[error("remove cgroup {path}: {source}")]
    Remove {
        /// Directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The guest's tree.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The tree mounted at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Hands the root's controllers down to containers. A controller that the kernel lacks is left out
    /// here; a limit that needs it fails by name.
    pub fn delegate(&self) -> Result<(), CgroupError> {
        let path = self.root.join("cgroup.controllers");
        let present = fs::read_to_string(&path).map_err(|source| CgroupError::Access {
            path: path.clone(),
            source,
        })?;
        let wanted: Vec<String> = present
            .split_whitespace()
            .filter(|name| CONTROLLERS.contains(name))
            .map(|name| format!("+{name}"))
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let path = self.root.join("cgroup.subtree_control");
        fs::write(&path, wanted.join(" ")).map_err(|source| CgroupError::Access { path, source })
    }

    /// Makes a container's cgroup and sets its limits; on failure nothing is left. `id` has been
    /// checked by [`crate::id::check`].
    pub fn make(&self, id: &str, settings: &[Setting]) -> Result<Cgroup, CgroupError> {
        let path = self.root.join(format!("container-{id}"));
        fs::create_dir(&path).map_err(|source| CgroupError::Make {
            path: path.clone(),
            source,
        })?;
        let cgroup = Cgroup { path };
        if let Err(error) = cgroup.set(settings) {
            // The limit is the news, not the directory.
            let _ = fs::remove_dir(&cgroup.path);
            return Err(error);
        }
        Ok(cgroup)
    }
}

/// A container's cgroup. Not removed on drop: [`Cgroup::remove`] can fail and be tried again.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, open, to fork into.
    pub fn open(&self) -> Result<OwnedFd, CgroupError> {
        File::open(&self.path)
            .map(OwnedFd::from)
            .map_err(|source| CgroupError::Access {
                path: self.path.clone(),
                source,
            })
    }

    /// Writes limits, in order; the first that fails ends it.
    pub fn set(&self, settings: &[Setting]) -> Result<(), CgroupError> {
        for Setting {
            file,
            value,
            field,
            optional,
        } in settings
        {
            let path = self.path.join(file);
            // Never create: on cgroupfs that cannot be, and in a fake tree it would hide a missing file.
            let written = File::options()
                .write(true)
                .open(&path)
                .and_then(|mut open| io::Write::write_all(&mut open, value.as_bytes()));
            match written {
                Ok(()) => {}
                Err(e) if *optional && e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(CgroupError::Set {
                        field: field.clone(),
                        file: file.clone(),
                        value: value.clone(),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Reads one of its files; `None` when it has no such file.
    pub fn read(&self, file: &str) -> Result<Option<String>, CgroupError> {
        let path = self.path.join(file);
        match fs::read_to_string(&path) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CgroupError::Access { path, source }),
        }
    }

    /// The process ids in it and in cgroups below it.
    pub fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        let mut left = vec![self.path.clone()];
        while let Some(directory) = left.pop() {
            let path = directory.join("cgroup.procs");
            match fs::read_to_string(&path) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // A cgroup below may be threaded (EOPNOTSUPP) or vanish meanwhile.
                Err(_) if directory != self.path => {}
                Err(source) => return Err(CgroupError::Access { path, source }),
            }
            left.extend(directories(&directory));
        }
        pids.retain(|pid| *pid != 0);
        Ok(pids)
    }

    /// Kills everything in it and below it.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.control("cgroup.kill", "1")
    }

    /// Asks the kernel to freeze or thaw; [`Cgroup::is_frozen`] tells when it is done.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.control("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Is every process in it frozen?
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        Ok(self.counter("cgroup.events", "frozen")? == Some(1))
    }

    /// How many processes the kernel killed in it for lack of memory; 0 without a memory controller.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        Ok(self.counter("memory.events", "oom_kill")?.unwrap_or(0))
    }

    /// One value of a `key value` file.
    fn counter(&self, file: &str, key: &str) -> Result<Option<u64>, CgroupError> {
        let text = self.read(file)?.unwrap_or_default();
        Ok(text.lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then(|| value.trim().parse().ok()).flatten()
        }))
    }

    fn control(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(|source| CgroupError::Access { path, source })
    }

    /// Removes it and the cgroups that the container made below it. Fails with EBUSY while a process
    /// is left; a container that is already gone is no error.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_tree(&self.path).map_err(|source| CgroupError::Remove {
            path: self.path.clone(),
            source,
        })
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Depth first without recursion: the container chose the depth.
fn remove_tree(root: &Path) -> io::Result<()> {
    let mut order = vec![root.to_owned()];
    let mut next = 0;
    while let Some(directory) = order.get(next).cloned() {
        order.extend(directories(&directory));
        next += 1;
    }
    for directory in order.iter().rev() {
        match fs::remove_dir(directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
