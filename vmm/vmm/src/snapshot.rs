//! The files of a saved machine.
//!
//! ```text
//! state    isopod-machine VERSION DIGEST\n   of what follows
//!          {"memory": ID, "machine": ...}    JSON
//! memory   the guest's, sparse (`isopod_memory::saved`) │ one page: isopod-memory VERSION ID\n
//! ```
//!
//! The ID is drawn for each save: it keeps a state from being restored with another's memory. The digest
//! tells of damage, not of forgery; whoever can write these files decides what the guest will be, and no
//! more than that: what they say is checked by all that take it on. Memory is not digested, because it is
//! not read before the guest touches it.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use anyhow::Context;
use isopod_config::{SnapshotDescriptors, StateDescriptors};
use isopod_jail::inherited;
use isopod_machine::{Machine, MachineError, MachineState};
use isopod_memory::saved;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Of both files.
const VERSION: u32 = 1;
const STATE: &str = "isopod-machine";
const MEMORY: &str = "isopod-memory";
/// A state with all processors and devices has less than 5 MiB.
const MAX_STATE: u64 = 32 << 20;
const TRAILER: u64 = isopod_vmm::walls::SAVED_TRAILER;

/// A machine could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// One of the files.
    #[error("the {file} file: {act}: {source}")]
    File {
        /// Which.
        file: &'static str,
        /// What was tried.
        act: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Something else.
    #[error("the {file} file is not that of a saved machine: {reason}")]
    NotSaved {
        /// Which.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Written by another isopod.
    #[error("the {file} file has version {found}, this isopod knows {VERSION}")]
    Version {
        /// Which.
        file: &'static str,
        /// Its version.
        found: u32,
    },
    /// Not what was written.
    #[error("the state file is damaged: its digest is another")]
    Damaged,
    /// Of two saves.
    #[error("the memory file belongs to another state: {memory}, the state has {state}")]
    OtherMemory {
        /// In the memory file.
        memory: String,
        /// In the state file.
        state: String,
    },
    /// The machine's own part.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The machine's memory.
    #[error("the memory file: {0}")]
    Memory(#[from] saved::SavedError),
}

fn failed(file: &'static str, act: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::File { file, act, source }
}

fn not_saved(file: &'static str, reason: impl ToString) -> SnapshotError {
    let reason = reason.to_string();
    SnapshotError::NotSaved { file, reason }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// The ID of the memory file.
    memory: String,
    machine: MachineState,
}

/// Bytes of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the guest's memory.
    pub memory: u64,
    /// Of the state.
    pub state: u64,
}

/// Where a machine is saved to.
pub struct Files {
    state: File,
    memory: File,
    /// Of this process; without it memory that was mapped cannot be saved.
    pagemap: Option<File>,
}

impl Files {
    /// Takes the descriptors, and opens what the jail hides.
    ///
    /// # Errors
    /// A descriptor that was not inherited, or /proc is not there.
    pub fn claim(descriptors: SnapshotDescriptors) -> anyhow::Result<Option<Self>> {
        let Some(StateDescriptors { state, memory }) = descriptors.save else {
            return Ok(None);
        };
        Ok(Some(Self::new(
            File::from(inherited::claim(state)?),
            File::from(inherited::claim(memory)?),
            descriptors.restore.is_some(),
        )?))
    }

    /// These files; `restored` tells that the machine itself goes on from others.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn new(state: File, memory: File, restored: bool) -> anyhow::Result<Self> {
        let pagemap = || File::open("/proc/self/pagemap").context("open /proc/self/pagemap");
        Ok(Self {
            state,
            memory,
            pagemap: restored.then(pagemap).transpose()?,
        })
    }

    /// Writes the paused machine. Of a save that failed no state is left that could be restored.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn save(&self, machine: &Machine) -> Result<Written, SnapshotError> {
        let state = machine.save()?;
        self.state.set_len(0).map_err(failed("state", "empty it"))?;
        let id = draw_id()?;
        let memory = saved::save(machine.memory(), &self.memory, self.pagemap.as_ref())?;
        let mut trailer = format!("{MEMORY} {VERSION} {id}\n").into_bytes();
        trailer.resize(TRAILER as usize, 0);
        self.memory
            .write_all_at(&trailer, saved::length(machine.memory()))
            .map_err(failed("memory", "write it"))?;
        let bytes = encode(&State {
            memory: id,
            machine: state,
        })?;
        self.state
            .write_all_at(&bytes, 0)
            .map_err(failed("state", "write it"))?;
        let state = bytes.len() as u64;
        Ok(Written { memory, state })
    }
}

/// A machine that was saved.
pub struct Saved {
    /// Processors and devices.
    pub state: MachineState,
    /// Memory, and a trailer.
    pub memory: File,
}

impl Saved {
    /// Takes the descriptors, if there are some.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn claim(descriptors: SnapshotDescriptors) -> anyhow::Result<Option<Self>> {
        let Some(StateDescriptors { state, memory }) = descriptors.restore else {
            return Ok(None);
        };
        let state = File::from(inherited::claim(state)?);
        let memory = File::from(inherited::claim(memory)?);
        Ok(Some(Self::read(&state, memory)?))
    }

    /// Reads the files of a save.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn read(state: &File, memory: File) -> Result<Self, SnapshotError> {
        let mut bytes = Vec::new();
        let mut from = ReadAt(state, 0).take(MAX_STATE + 1);
        from.read_to_end(&mut bytes)
            .map_err(failed("state", "read it"))?;
        let State {
            memory: expected,
            machine,
        } = decode(&bytes)?;
        let found = memory_id(&memory)?;
        if found != expected {
            return Err(SnapshotError::OtherMemory {
                memory: found,
                state: expected,
            });
        }
        Ok(Self {
            state: machine,
            memory,
        })
    }
}

/// From the beginning, wherever the descriptor's other holders have moved its position.
struct ReadAt<'a>(&'a File, u64);

impl Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read_at(buffer, self.1)?;
        self.1 += count as u64;
        Ok(count)
    }
}

fn encode(state: &State) -> Result<Vec<u8>, SnapshotError> {
    let json = serde_json::to_vec(state).map_err(|error| not_saved("state", error))?;
    let digest = hex(&Sha256::digest(&json));
    let header = format!("{STATE} {VERSION} {digest}\n").into_bytes();
    Ok([header, json].concat())
}

fn decode(bytes: &[u8]) -> Result<State, SnapshotError> {
    if bytes.len() as u64 > MAX_STATE {
        return Err(not_saved("state", "it is too long"));
    }
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (header, rest) = end
        .and_then(|end| bytes.split_at_checked(end + 1))
        .ok_or_else(|| not_saved("state", "it has no first line"))?;
    let digest = check_header("state", STATE, header)?;
    if digest != hex(&Sha256::digest(rest)) {
        return Err(SnapshotError::Damaged);
    }
    serde_json::from_slice(rest).map_err(|error| not_saved("state", error))
}

/// The ID in the last page.
fn memory_id(memory: &File) -> Result<String, SnapshotError> {
    let read = || {
        let length = memory.metadata()?.len();
        let at = length.checked_sub(TRAILER);
        let at = at.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut trailer = [0; TRAILER as usize];
        memory.read_exact_at(&mut trailer, at)?;
        Ok(trailer)
    };
    let trailer = read().map_err(failed("memory", "read its last page"))?;
    let line = trailer.split_inclusive(|byte| *byte == b'\n').next();
    check_header("memory", MEMORY, line.unwrap_or_default())
}

/// The last word of a file's line, whose first must be `name` and whose second our version.
fn check_header(file: &'static str, name: &str, line: &[u8]) -> Result<String, SnapshotError> {
    let line = std::str::from_utf8(line).unwrap_or_default();
    let mut words = line.strip_suffix('\n').unwrap_or_default().split(' ');
    if words.next() != Some(name) {
        return Err(not_saved(file, format!("it does not say {name}")));
    }
    let version = words.next().and_then(|word| word.parse::<u32>().ok());
    match (version, words.next(), words.next()) {
        (Some(VERSION), Some(last), None) => Ok(last.to_owned()),
        (Some(found), ..) if found != VERSION => Err(SnapshotError::Version { file, found }),
        _ => Err(not_saved(file, "its version cannot be read")),
    }
}

fn draw_id() -> Result<String, SnapshotError> {
    let mut id = [0; 16];
    let drawn = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty());
    drawn.map_err(|error| failed("memory", "draw an ID")(error.into()))?;
    Ok(hex(&id))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
