//! What is there now and was not there before: the case must leave its bed as it found it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{Bed, process::patient, procfs};

/// Everything of a bed that a runtime could leave behind, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// How long what was ended may take to vanish.
const PATIENCE: Duration = Duration::from_secs(10);

/// Directories that containerd, ctr, runc or isopod make once and keep, empty.
const KEPT: [&str; 7] = [
    "/run/containerd",
    "/run/containerd/fifo",
    "/run/containerd/runc",
    "/run/containerd/s",
    "/run/isopod",
    "/run/it/state/io.containerd.runtime.v2.task",
    "/run/it/disk/containerd/io.containerd.runtime.v2.task",
];

/// Where runtimes keep state.
const WATCHED: [&str; 6] = [
    "/run/containerd",
    "/run/isopod",
    "/run/runc",
    "/run/it/state",
    "/run/it/disk/containerd/io.containerd.runtime.v2.task",
    "/dev/shm",
];

impl Snapshot {
    /// Looks at the bed.
    pub fn take(bed: &Bed) -> Result<Self> {
        let mut all = BTreeSet::new();
        for process in procfs::processes()? {
            // Kernel threads do not live in a pid namespace; a zombie would be ours to explain. A case may
            // restart containerd, so that its pid is another.
            if process.pid == bed.containerd().pid() {
                continue;
            }
            all.insert(format!(
                "process {} {} {}",
                process.pid, process.name, process.command_line
            ));
        }
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if let [_, _, _, _, target, ..] = words.as_slice() {
                let source = words.iter().rev().nth(1).unwrap_or(&"");
                all.insert(format!("mount {source} on {target}"));
            }
        }
        for line in fs::read_to_string("/proc/net/unix")?.lines().skip(1) {
            let listening = line.split_whitespace().nth(3) == Some("00010000");
            if let (true, Some(path)) = (listening, line.split_whitespace().nth(7)) {
                all.insert(format!("listening socket {path}"));
            }
        }
        for dir in WATCHED {
            files(Path::new(dir), &mut |path, is_dir| {
                let name = path.display().to_string();
                let kept = is_dir
                    && (KEPT.contains(&name.as_str())
                        || name.ends_with(&format!("/{}", bed.namespace)));
                if !kept {
                    all.insert(format!(
                        "{} {name}",
                        if is_dir { "directory" } else { "file" }
                    ));
                }
            });
        }
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path());
        for hierarchy in hierarchies.chain([root.to_owned()]) {
            for group in directories(&hierarchy.join(&bed.namespace))
                .into_iter()
                .skip(1)
            {
                all.insert(format!("cgroup {}", group.display()));
            }
        }
        for (kind, arguments) in [
            ("task", ["task", "ls", "-q"]),
            ("container", ["container", "ls", "-q"]),
        ] {
            for id in bed.ctr_run(arguments)?.ok()?.out().lines() {
                all.insert(format!("{kind} {id}"));
            }
        }
        Ok(Self(all))
    }

    /// Fails with what is there now and was not, unless it vanishes within a few seconds.
    pub fn assert_restored(&self, bed: &Bed) -> Result<()> {
        let until = Instant::now() + patient(PATIENCE);
        loop {
            let now = Self::take(bed)?;
            // `ctr` itself appears in a snapshot only when it is orphaned: it is not running now.
            let added: Vec<&String> = now.0.difference(&self.0).collect();
            if added.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                let list: Vec<&str> = added.into_iter().map(String::as_str).collect();
                bail!("left behind:\n  {}", list.join("\n  "));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn files(dir: &Path, visit: &mut dyn FnMut(&Path, bool)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        visit(&entry.path(), is_dir);
        if is_dir {
            files(&entry.path(), visit);
        }
    }
}

/// A directory, when it exists, and every directory beneath it; parents first.
pub(crate) fn directories(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    if dir.is_dir() {
        all.push(dir.to_owned());
        files(dir, &mut |path, is_dir| {
            if is_dir {
                all.push(path.to_owned());
            }
        });
    }
    all
}
