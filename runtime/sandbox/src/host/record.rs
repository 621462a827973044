//! What a pod owns on the host, written into its bundle before it is made: whoever comes after a
//! killed shim finds it there.
//!
//! Mounts need no list: all of them lie beneath the pod's directory, and the kernel knows them. A
//! process is recorded with its start time as soon as it has a pid; one that is started in the moment
//! before dies with its parent (it holds the other end of the parent's lifeline).

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::HostError;

/// The record's name in the bundle.
const FILE: &str = "isopod-pod.json";
/// A record has a few hundred bytes.
const MAX_LEN: u64 = 64 << 10;

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The pod's id, for messages.
    pub id: String,
    /// The pod's directory.
    pub dir: PathBuf,
    /// The control groups that were made for it. A pod that was started before an upgrade may have none.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
    /// Its processes.
    pub processes: Vec<RecordedProcess>,
}

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordedProcess {
    pub name: String,
    pub pid: u32,
    /// Clock ticks after boot (proc(5), stat, field 22): tells it from a later one with its pid.
    pub start_time: u64,
}

impl Record {
    /// The record in a bundle, if there is one.
    pub fn read(bundle: &Path) -> Result<Option<Self>, HostError> {
        let path = bundle.join(FILE);
        let failed = HostError::path("read", &path);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(found) if found.len() > MAX_LEN => {
                return Err(failed(io::Error::other("too large for a record")));
            }
            Ok(_) => {}
        }
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) => return Err(failed(error)),
        };
        let record: Self = match serde_json::from_slice(&text) {
            Ok(record) => record,
            Err(error) => return Err(failed(error.into())),
        };
        if !is_pod_directory(&record.dir) {
            return Err(failed(io::Error::other("names no pod's directory")));
        }
        Ok(Some(record))
    }

    /// Replaces the record at once: a reader sees the old one or the new one.
    pub fn write(&self, bundle: &Path) -> Result<(), HostError> {
        let path = bundle.join(FILE);
        let fresh = bundle.join(".isopod-pod.json.new");
        let act = || -> io::Result<()> {
            let mut options = fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&fresh, &path)
        };
        act().map_err(HostError::path("write", &path))
    }

    /// Removes the record; nothing is owned any more.
    pub fn remove(bundle: &Path) -> Result<(), HostError> {
        let path = bundle.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::path("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// What a damaged record names is not unmounted and removed.
fn is_pod_directory(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str());
    let hex = |name: &str| name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    dir.is_absolute() && name.is_some_and(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_written_and_removed_twice() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(bundle.path()).unwrap(), None);
        let mut record = Record {
            id: "pod".into(),
            dir: "/run/isopod/0123456789abcdef".into(),
            groups: vec!["/sys/fs/cgroup/default/pod".into()],
            processes: Vec::new(),
        };
        record.write(bundle.path()).unwrap();
        record.processes.push(RecordedProcess {
            name: "qemu".into(),
            pid: 3,
            start_time: 17,
        });
        record.write(bundle.path()).unwrap();
        assert_eq!(Record::read(bundle.path()).unwrap(), Some(record));
        Record::remove(bundle.path()).unwrap();
        Record::remove(bundle.path()).unwrap();
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 0);
    }

    /// A shim of before an upgrade may die after it.
    #[test]
    fn a_record_of_a_version_without_groups_is_read() {
        let bundle = tempfile::tempdir().unwrap();
        let old = r#"{"id": "pod", "dir": "/run/isopod/0123456789abcdef", "processes": []}"#;
        fs::write(bundle.path().join(FILE), old).unwrap();
        let record = Record::read(bundle.path()).unwrap().unwrap();
        assert_eq!(record.groups, Vec::<PathBuf>::new());
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_it() {
        let bundle = tempfile::tempdir().unwrap();
        let elsewhere = r#"{"id": "x", "dir": "/etc", "groups": [], "processes": []}"#;
        for text in ["{", elsewhere] {
            fs::write(bundle.path().join(FILE), text).unwrap();
            let error = Record::read(bundle.path()).unwrap_err().to_string();
            assert!(error.contains(FILE), "{error}");
        }
    }
}
