//! A pod's control group on the host: what its processes use is counted and limited where the caller
//! asked, next to the pod's other groups, and not with containerd.
//!
//! Limits of processors and memory are the parent's (Kubernetes sets them for the pod as a whole, its runtime
//! class's overhead included); the containers' own hold in the guest. The group itself is a wall for
//! one thing: how many threads the pod's processes may make.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::{HostError, mount::unescape};

/// Controllers of version 1 that count or limit what a pod uses; each may be a hierarchy of its own.
const CONTROLLERS: [&[u8]; 5] = [b"cpu", b"cpuacct", b"memory", b"blkio", b"pids"];
/// What a group of version 2 hands down, where the kernel lets it: processes in a parent forbid it.
const HANDED_DOWN: [&str; 4] = ["+cpu", "+memory", "+io", "+pids"];
/// Threads of all processes of a pod. A machine has 64 processors at most and a thread for each; QEMU adds up
/// to 64 for its disks. What goes beyond has been taken over.
const TASKS_MAX: &str = "512";
/// A group whose last process has just ended is busy for a moment: attempts, and the time between them.
const ATTEMPTS: u32 = 100;
const BETWEEN: Duration = Duration::from_millis(10);

/// The directories of one group, one for each hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodGroup {
    directories: Vec<PathBuf>,
}

impl PodGroup {
    /// The group's places in this host's hierarchies, whether it exists or not. None where `group` is
    /// empty or no hierarchy is mounted: the pod's processes then stay in the shim's.
    pub fn find(group: &Path) -> Result<Self, HostError> {
        let path = "/proc/thread-self/mountinfo";
        let mounts = fs::read(path).map_err(HostError::path("read", path))?;
        if group.as_os_str().is_empty() {
            return Ok(Self::default());
        }
        let roots = hierarchies(&mounts).into_iter();
        Ok(Self {
            directories: roots.map(|root| root.join(group)).collect(),
        })
    }

    /// What will be made: for the record. A group that is there already is somebody else's to remove.
    pub fn missing(&self) -> Vec<PathBuf> {
        let directories = self.directories.iter();
        directories.filter(|path| !path.exists()).cloned().collect()
    }

    /// Makes what is missing. What is there already keeps its limits: others may be in it.
    pub fn create(&self) -> Result<(), HostError> {
        for directory in &self.missing() {
            fs::create_dir_all(directory).map_err(HostError::path("make", directory))?;
            for parent in directory.ancestors().skip(1) {
                let control = parent.join("cgroup.subtree_control");
                if !control.exists() {
                    break;
                }
                for controller in HANDED_DOWN {
                    let _ = fs::write(&control, controller);
                }
            }
            let most = directory.join("pids.max");
            if most.exists() {
                fs::write(&most, TASKS_MAX).map_err(HostError::path("write", &most))?;
            }
        }
        Ok(())
    }

    /// Moves a process into the group. One that has ended meanwhile is no error: its end is told elsewhere.
    pub fn add(&self, pid: u32) -> Result<(), HostError> {
        for directory in &self.directories {
            let procs = directory.join("cgroup.procs");
            match fs::write(&procs, pid.to_string()) {
                Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => {
                    return Err(HostError::path("write", procs)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes groups that were recorded, when the pod's processes have ended; one that others have moved into
/// meanwhile is left to them. Goes on after a failure; tells the first. Idempotent.
pub(crate) fn remove(groups: &[PathBuf]) -> Result<(), HostError> {
    let mut first = Ok(());
    for group in groups {
        first = first.and(remove_one(group).map_err(HostError::path("remove", group)));
    }
    first
}

fn remove_one(group: &Path) -> io::Result<()> {
    match statfs(group).map(|found| found.filesystem_type()) {
        Ok(CGROUP_SUPER_MAGIC | CGROUP2_SUPER_MAGIC) => {}
        Ok(_) => return Err(io::Error::other("is no control group")),
        Err(nix::Error::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    let mut left = ATTEMPTS;
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => return Err(error),
            Err(_) if left == 0 => {
                tracing::warn!(group = %group.display(), "others are in the pod's control group: it stays");
                return Ok(());
            }
            Err(_) => {
                left = left.saturating_sub(1);
                thread::sleep(BETWEEN);
            }
        }
    }
}

/// Where hierarchies are mounted that have a controller of ours: the one of version 2, unless version 1
/// has them. Each hierarchy once.
fn hierarchies(mountinfo: &[u8]) -> Vec<PathBuf> {
    let (mut version_1, mut version_2) = (Vec::new(), Vec::new());
    let mut seen = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        // proc(5): ... path options [optional fields] - type source super-options
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [_, _, device, _, path, _, rest @ ..] = words.as_slice() else {
            continue;
        };
        let Some(dash) = rest.iter().position(|word| *word == b"-") else {
            continue;
        };
        let kind = rest.get(dash.saturating_add(1)).copied();
        let options = rest
            .get(dash.saturating_add(3))
            .copied()
            .unwrap_or_default();
        let ours = || {
            let mut options = options.split(|byte| *byte == b',');
            options.any(|option| CONTROLLERS.contains(&option))
        };
        let found = match kind {
            Some(b"cgroup") if ours() => &mut version_1,
            Some(b"cgroup2") => &mut version_2,
            _ => continue,
        };
        if !seen.contains(device) {
            seen.push(*device);
            found.push(unescape(path));
        }
    }
    if version_1.is_empty() {
        version_2
    } else {
        version_1
    }
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
