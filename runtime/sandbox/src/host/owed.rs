//! The poststop hooks that a container is owed, in its bundle from before anything is made for it until they
//! have run: a shim that is killed runs them no more, and the `delete` that comes after it does.
//!
//! ```text
//! create: write -> the first hooks, the container
//! delete: the container is removed -> poststop hooks -> remove
//! (killed)  `delete`: the pod is removed -> read -> poststop hooks -> remove
//! ```
//! A shim that is killed between the hooks and the removal leaves them to be run twice, rather than never.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{HostError, hooks};
use crate::plan::HostHooks;

/// The file's name in the bundle.
const FILE: &str = "isopod-poststop.json";
/// A specification is not longer.
const MAX_LEN: u64 = 16 << 20;

/// Notes a container's poststop hooks, if it has some.
pub(crate) fn note(owed: &HostHooks) -> Result<(), HostError> {
    if owed.poststop.is_empty() {
        return Ok(());
    }
    let path = place(&owed.bundle);
    let fresh = owed.bundle.join(".isopod-poststop.json.new");
    let act = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&serde_json::to_vec(owed)?)?;
        fs::rename(&fresh, &path)
    };
    act().map_err(HostError::path("write", &path))
}

/// Runs the poststop hooks of a container that is gone, and forgets them.
pub(crate) async fn settle(owed: &HostHooks) {
    if owed.poststop.is_empty() {
        return;
    }
    hooks::run_all(&owed.poststop, &owed.bundle, &owed.state("stopped", None)).await;
    forget(&owed.bundle);
}

/// Nothing is owed: no hook ran, or the last has. The bundle may be gone with its container.
pub(crate) fn forget(bundle: &Path) {
    let _ = fs::remove_file(place(bundle));
}

/// The same for a container whose shim was killed.
pub(crate) async fn settle_noted(bundle: &Path) -> Result<(), HostError> {
    match read(bundle)? {
        Some(owed) => {
            settle(&owed).await;
            Ok(())
        }
        None => Ok(()),
    }
}

fn read(bundle: &Path) -> Result<Option<HostHooks>, HostError> {
    let path = place(bundle);
    let act = || -> io::Result<Option<HostHooks>> {
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(found) if found.len() > MAX_LEN => {
                return Err(io::Error::other("it is too large"));
            }
            Ok(_) => {}
        }
        let mut owed: HostHooks = serde_json::from_slice(&fs::read(&path)?)?;
        // It may be named differently now.
        owed.bundle = bundle.to_owned();
        Ok(Some(owed))
    };
    act().map_err(HostError::path("read", &path))
}

fn place(bundle: &Path) -> PathBuf {
    bundle.join(FILE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hooks(bundle: &Path, poststop: serde_json::Value) -> HostHooks {
        let spec =
            json!({"ociVersion": "1.2.0", "root": {"path": "r"}, "hooks": {"poststop": poststop}});
        let mut spec = serde_json::from_value(spec).unwrap();
        HostHooks::take("c1", bundle, &mut spec).unwrap()
    }

    #[tokio::test]
    async fn what_is_owed_is_paid_once_by_whoever_comes() {
        let bundle = tempfile::tempdir().unwrap();
        let script = "cat >> told; echo >> told";
        let owed = hooks(
            bundle.path(),
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]),
        );
        note(&owed).unwrap();
        for _ in 0..2 {
            settle_noted(bundle.path()).await.unwrap();
        }
        let told = fs::read_to_string(bundle.path().join("told")).unwrap();
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(r#""status":"stopped""#), "{told}");
        assert!(!place(bundle.path()).exists());
    }

    #[tokio::test]
    async fn nobody_is_owed_nothing() {
        let bundle = tempfile::tempdir().unwrap();
        note(&hooks(bundle.path(), json!([]))).unwrap();
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 0);
        settle_noted(bundle.path()).await.unwrap();
        fs::write(place(bundle.path()), "{").unwrap();
        let error = settle_noted(bundle.path()).await.unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
