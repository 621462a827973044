//! A machine that is saved at the end, and one that goes on from there.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
};

use anyhow::{Context, ensure};

use crate::snapshot::{Files, Saved};

const STATE: &str = "state";
const MEMORY: &str = "memory";

/// What was saved to a directory.
pub fn open(directory: &Path) -> anyhow::Result<Saved> {
    let open = |name| {
        let path = directory.join(name);
        File::open(&path).with_context(|| path.display().to_string())
    };
    let saved = Saved::read(&open(STATE)?, open(MEMORY)?);
    saved.with_context(|| format!("--restore-from {}", directory.display()))
}

/// The files that a machine will be saved to; what is in them is written over then.
pub fn make(directory: &Path, restored: Option<&Path>) -> anyhow::Result<Files> {
    let told = || format!("--save-to {}", directory.display());
    fs::create_dir_all(directory).with_context(told)?;
    if let Some(restored) = restored {
        let same = same_directory(directory, restored).with_context(told)?;
        // The machine's memory is mapped from there.
        ensure!(!same, "{}: the machine is restored from it", told());
    }
    let open = |name| {
        let path = directory.join(name);
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path);
        file.with_context(|| path.display().to_string())
    };
    Files::new(open(STATE)?, open(MEMORY)?, restored.is_some())
}

fn same_directory(one: &Path, other: &Path) -> std::io::Result<bool> {
    let id = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino()));
    Ok(id(one)? == id(other)?)
}
