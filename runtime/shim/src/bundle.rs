//! The files that the shim keeps in a bundle beside containerd's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Where containerd 1.6 looks for the socket after a restart.
const ADDRESS: &str = "address";
/// Which process serves; only in the bundle it was started for.
const SERVER: &str = "isopod-shim.json";

/// Why a bundle's specification cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// No such file, or no right to it.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no specification.
    #[error("{field}: {reason}")]
    Parse {
        /// JSON path of the property.
        field: String,
        /// In words.
        reason: String,
    },
}

/// The bundle's config.json; an error names the property.
pub fn read_spec(bundle: &Path) -> Result<Spec, SpecError> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|source| SpecError::Read { path, source })?;
    parse_json("config.json", &text)
}

/// An object of the runtime specification; `whole` is its name when no property of it is at fault.
pub fn parse_json<T: DeserializeOwned>(whole: &str, json: &[u8]) -> Result<T, SpecError> {
    let mut document: Value = serde_json::from_slice(json).map_err(|error| SpecError::Parse {
        field: whole.to_owned(),
        reason: error.to_string(),
    })?;
    respell(&mut document);
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        SpecError::Parse {
            field: match path.as_str() {
                "." | "?" => whole.to_owned(),
                _ => path,
            },
            reason: error.inner().to_string(),
        }
    })
}

/// Flags of a process's scheduler that the library spells otherwise than the specification does.
const SPELLINGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

fn respell(document: &mut Value) {
    // Of a container, or the process itself.
    for place in ["/process/scheduler/flags", "/scheduler/flags"] {
        let flags = document.pointer_mut(place).and_then(Value::as_array_mut);
        for flag in flags.into_iter().flatten() {
            for (right, librarys) in SPELLINGS {
                if flag == right {
                    *flag = librarys.into();
                }
            }
        }
    }
}

/// The server process of a pod, named so that a reused pid is not mistaken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Its pid.
    pub pid: u32,
    /// Clock ticks since boot (proc(5), /proc/PID/stat field 22).
    pub start_time: u64,
    /// The VM process's pid, once there is one: the task's pid for containerd.
    pub task_pid: u32,
}

impl ServerRecord {
    /// A record of the process `pid`, which lives.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            task_pid: 0,
        })
    }

    /// The record in `bundle`, if there is a readable one.
    pub fn read(bundle: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(bundle.join(SERVER)).ok()?).ok()
    }

    /// Writes the record to `bundle`.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        replace(&bundle.join(SERVER), &serde_json::to_vec(self)?)
    }

    /// Whether the process still lives.
    pub fn lives(&self) -> bool {
        start_time(self.pid).is_ok_and(|found| found == self.start_time)
    }
}

/// Writes the `address` file.
pub fn write_address(bundle: &Path, address: &str) -> io::Result<()> {
    replace(&bundle.join(ADDRESS), address.as_bytes())
}

/// The socket's path in the `address` file.
pub fn read_socket(bundle: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(bundle.join(ADDRESS)).ok()?;
    Some(text.trim().strip_prefix("unix://")?.into())
}

/// Readers see the old or the new content, never half of one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, content)?;
    fs::rename(&new, path)
}

fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat: {stat:?}")))
}

/// Field 22; the second field is in parentheses and may hold anything, parentheses too. A zombie
/// counts as ended.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_of_strange_names() {
        let rest = "1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 99 1";
        for (stat, expected) in [
            (format!("7 (sh) S {rest}"), Some(4242)),
            (format!("7 (a) b) R 1) S {rest}"), Some(4242)),
            (format!("7 (sh) Z {rest}"), None),
            ("7 (sh) S 1".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_start_time(&stat), expected, "{stat}");
        }
    }

    #[test]
    fn record_survives_and_knows_its_process() {
        let bundle = tempfile::tempdir().expect("a directory");
        assert_eq!(ServerRecord::read(bundle.path()), None);
        let record = ServerRecord::of(std::process::id()).expect("this process lives");
        record.write(bundle.path()).expect("written");
        assert_eq!(ServerRecord::read(bundle.path()), Some(record.clone()));
        assert!(record.lives());
        let reused = ServerRecord {
            start_time: record.start_time.wrapping_add(1),
            ..record
        };
        assert!(!reused.lives());
    }

    #[test]
    fn a_bad_property_is_named() {
        let bundle = tempfile::tempdir().expect("a directory");
        let error = |bundle: &Path| read_spec(bundle).expect_err("refused").to_string();
        assert!(error(bundle.path()).starts_with("read "));
        for (text, field) in [
            ("{", "config.json: "),
            (
                r#"{"linux": {"namespaces": [{"type": "what"}]}}"#,
                "linux.namespaces[0].type: ",
            ),
            (
                r#"{"process": {"cwd": "/", "rlimits": [{"type": "RLIMIT_WHAT", "soft": 1, "hard": 1}]}}"#,
                "process.rlimits[0].type: ",
            ),
        ] {
            fs::write(bundle.path().join("config.json"), text).expect("written");
            let error = error(bundle.path());
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn flags_are_spelled_as_the_specification_does() {
        use oci_spec::runtime::{LinuxSchedulerFlag as Flag, Process, Spec};
        let process = r#"{"cwd": "/", "user": {"uid": 0, "gid": 0}, "scheduler": {"policy": "SCHED_FIFO", "flags":
            ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY"]}}"#;
        let expected = vec![
            Flag::SchedResetOnFork,
            Flag::SchedFlagDLOverrun,
            Flag::SchedFlagKeepPolicy,
        ];
        let flags = |process: &Process| process.scheduler().as_ref()?.flags().clone();
        let alone: Process = parse_json("process", process.as_bytes()).expect("parsed");
        assert_eq!(flags(&alone), Some(expected.clone()));
        let whole = format!(r#"{{"ociVersion": "1.2.0", "process": {process}}}"#);
        let whole: Spec = parse_json("config.json", whole.as_bytes()).expect("parsed");
        assert_eq!(whole.process().as_ref().and_then(flags), Some(expected));
    }

    #[test]
    fn address_file() {
        let bundle = tempfile::tempdir().expect("a directory");
        assert_eq!(read_socket(bundle.path()), None);
        write_address(bundle.path(), "unix:///run/s/x").expect("written");
        assert_eq!(read_socket(bundle.path()), Some("/run/s/x".into()));
    }
}
