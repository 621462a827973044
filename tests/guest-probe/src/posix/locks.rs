//! Locks: flock(2) and POSIX record locks, within a process and between processes.

use std::{fs::File, path::Path};

use anyhow::{Context, Result};
use rustix::{
    fs::{FlockOperation, fcntl_lock, flock},
    io::Errno,
};

use super::{Check, fails, file, other_process, same};

pub const CHECKS: &[Check] = &[
    ("flock", whole_file_locks),
    ("posix_locks", record_locks),
    ("locks_end_with_their_process", released),
];

/// The other process: takes a POSIX lock without waiting; true when it got it.
pub fn try_lock(path: &Path) -> Result<bool> {
    let file = File::options().read(true).write(true).open(path)?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error).context("take the lock"),
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}

fn whole_file_locks(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "")?;
    let (one, two) = (open(&path)?, open(&path)?);
    flock(&one, FlockOperation::LockExclusive).context("lock")?;
    fails(
        "lock twice",
        flock(&two, FlockOperation::NonBlockingLockExclusive),
        Errno::AGAIN,
    )?;
    fails(
        "share a locked",
        flock(&two, FlockOperation::NonBlockingLockShared),
        Errno::AGAIN,
    )?;
    flock(&one, FlockOperation::LockShared).context("downgrade")?;
    flock(&two, FlockOperation::NonBlockingLockShared).context("share")?;
    flock(&one, FlockOperation::Unlock).context("unlock")?;
    flock(&two, FlockOperation::NonBlockingLockExclusive).context("upgrade")?;
    drop(two);
    flock(&one, FlockOperation::NonBlockingLockExclusive).context("after close")
}

fn record_locks(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "text")?;
    let held = open(&path)?;
    same(
        "nobody holds it",
        other_process(None, &["lock"], &path)?,
        true,
    )?;
    fcntl_lock(&held, FlockOperation::LockExclusive).context("lock")?;
    same("it is held", other_process(None, &["lock"], &path)?, false)?;
    fcntl_lock(&held, FlockOperation::Unlock).context("unlock")?;
    same(
        "it is free again",
        other_process(None, &["lock"], &path)?,
        true,
    )
}

fn released(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "text")?;
    for _ in 0..3 {
        // Each of these takes the lock and ends without giving it back.
        same("lock", other_process(None, &["lock"], &path)?, true)?;
    }
    Ok(())
}
