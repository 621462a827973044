//! Checks of a file system, each in a directory of its own, each saying what ext4 does.

mod data;
pub mod directories;
mod locks;
mod metadata;
mod names;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use serde_json::json;

/// A check: its name, and what it does in an empty directory.
type Check = (&'static str, fn(&Path) -> Result<()>);

/// Runs every check in its own directory under `dir`; true when all hold.
pub fn all(dir: &Path) -> Result<bool> {
    let groups = [
        names::CHECKS,
        data::CHECKS,
        metadata::CHECKS,
        locks::CHECKS,
        directories::CHECKS,
    ];
    let mut good = true;
    for (name, check) in groups.into_iter().flatten() {
        let place = dir.join(name);
        fs::create_dir(&place).with_context(|| format!("create {}", place.display()))?;
        let outcome = check(&place);
        let removed = fs::remove_dir_all(&place).context("remove what the check made");
        let error = outcome.and(removed).err().map(|error| format!("{error:#}"));
        good &= error.is_none();
        println!("{}", json!({ "check": name, "error": error }));
        std::io::stdout().flush()?;
    }
    Ok(good)
}

/// Plays the other process of a check; true when it got what it asked for.
pub fn child(words: &[&str]) -> Result<bool> {
    match words {
        ["lock", file] => locks::try_lock(Path::new(file)),
        ["write", file] => Ok(fs::OpenOptions::new().write(true).open(file).is_ok()),
        ["create", file] => Ok(fs::File::create_new(file).is_ok()),
        ["remove", file] => Ok(fs::remove_file(file).is_ok()),
        other => bail!("unknown part {other:?}"),
    }
}

/// Runs this program again as another process, optionally as another user; true when it got its way.
fn other_process(user: Option<u32>, words: &[&str], file: &Path) -> Result<bool> {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg("posix-child").args(words).arg(file);
    if let Some(id) = user {
        command.uid(id).gid(id);
    }
    let status = command.status().context("run the other process")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        other => bail!("the other process ended with {other:?}"),
    }
}

/// The call must fail with this error.
fn fails<T>(
    what: &str,
    outcome: Result<T, impl Into<std::io::Error>>,
    expected: Errno,
) -> Result<()> {
    match outcome {
        Ok(_) => bail!("{what}: succeeded, expected {expected:?}"),
        Err(error) => {
            let error: std::io::Error = error.into();
            if error.raw_os_error() != Some(expected.raw_os_error()) {
                bail!("{what}: {error}, expected {expected:?} ({expected})");
            }
            Ok(())
        }
    }
}

/// The two must be equal.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Result<()> {
    if got != expected {
        bail!("{what}: got {got:?}, expected {expected:?}");
    }
    Ok(())
}

/// Makes a file with some content.
fn file(dir: &Path, name: &str, content: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, content).with_context(|| format!("write {name}"))?;
    Ok(path)
}
