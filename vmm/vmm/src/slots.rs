//! Slots while the machine runs: what is behind them comes and goes, and the guest is told.
//!
//! ```text
//!   attach: empty ───────────> in use        unknown slot, wrong kind, in use: an error, nothing changes
//!           empty <─────────── in use :detach
//!                  or its other end left (tap device removed, stream closed)
//! ```
//!
//! Each act runs on the device's own thread, between two rounds of its work.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use isopod_devices::{
    balloon::{self, Balloon},
    blk::{Blk, BlkError, Disk, DiskError},
    console::{Console, Peer},
    mem::{Mem, RequestError},
    net::{Net, NetError},
};
use isopod_machine::{Control, WorkerGone};
use rustix::net::{SocketType, sockopt::socket_type};

/// What is joined to a slot.
#[derive(Debug)]
pub enum BackEnd {
    /// A file or block device.
    Disk(OwnedFd),
    /// The queues of a tap device.
    Tap(Vec<OwnedFd>),
    /// One end of a stream.
    Stream(OwnedFd),
}

/// An act on a slot failed.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Not of this machine.
    #[error("slot {0:?}: the machine has none of that name")]
    Unknown(String),
    /// A disk for a network card, and so on.
    #[error("slot {slot}: it takes {takes}")]
    Kind {
        /// Which.
        slot: String,
        /// What would serve.
        takes: &'static str,
    },
    /// There is something already.
    #[error("slot {0} is in use")]
    InUse(String),
    /// There is nothing.
    #[error("slot {0} is empty")]
    Empty(String),
    /// No disk, or one that does not serve.
    #[error("slot {slot}: {source}")]
    Disk {
        /// Which.
        slot: String,
        /// Why.
        source: DiskError,
    },
    /// A disk that does not fit its slot.
    #[error("slot {slot}: {source}")]
    Blk {
        /// Which.
        slot: String,
        /// Why.
        source: BlkError,
    },
    /// No tap device, or one that does not serve.
    #[error("slot {slot}: {source}")]
    Net {
        /// Which.
        slot: String,
        /// Why.
        source: NetError,
    },
    /// No stream.
    #[error("slot {slot}: the stream: {source}")]
    Stream {
        /// Which.
        slot: String,
        /// Why.
        source: io::Error,
    },
    /// What was written last may not have reached the disk.
    #[error("slot {slot}: flush the disk that was taken out: {source}")]
    Flush {
        /// Which.
        slot: String,
        /// Why.
        source: io::Error,
    },
    /// A device that the machine was made without.
    #[error("the machine has no {0}")]
    NoDevice(&'static str),
    /// More than can be added.
    #[error("hotplug_mib = {mib}: {source}")]
    Hotplug {
        /// What was asked for.
        mib: u64,
        /// Why not.
        source: RequestError,
    },
    /// More than there is.
    #[error("balloon_mib = {mib}: the guest boots with {memory_mib}")]
    Balloon {
        /// What was asked for.
        mib: u64,
        /// What there is.
        memory_mib: u64,
    },
    /// The device's thread.
    #[error("slot {slot}: {source}")]
    Gone {
        /// Which.
        slot: String,
        /// What is wrong.
        source: WorkerGone,
    },
}

/// A hold on every device that can be acted on.
#[derive(Default)]
pub struct Slots {
    /// By number.
    pub disks: Vec<Control<Blk>>,
    /// By number.
    pub nets: Vec<Control<Net>>,
    /// If there is one.
    pub console: Option<Control<Console>>,
    /// If there is one.
    pub balloon: Option<Control<Balloon>>,
    /// If there is one.
    pub memory: Option<Control<Mem>>,
    /// What the guest boots with.
    pub memory_mib: u64,
}

/// What the guest's disks and network cards are called here.
pub fn disk_name(index: usize) -> String {
    format!("blk-{index}")
}

/// The same.
pub fn net_name(index: usize) -> String {
    format!("net-{index}")
}

/// The console's.
pub const CONSOLE: &str = "console";
/// The balloon's.
pub const BALLOON: &str = "balloon";
/// The name of the device that adds memory.
pub const MEMORY: &str = "mem";

enum Slot<'a> {
    Disk(&'a Control<Blk>),
    Net(&'a Control<Net>),
    Console(&'a Control<Console>),
}

impl Slots {
    fn find(&self, name: &str) -> Result<Slot<'_>, SlotError> {
        let mut disks = (0..).zip(&self.disks);
        let mut nets = (0..).zip(&self.nets);
        if let Some((_, disk)) = disks.find(|(index, _)| disk_name(*index) == name) {
            return Ok(Slot::Disk(disk));
        }
        if let Some((_, net)) = nets.find(|(index, _)| net_name(*index) == name) {
            return Ok(Slot::Net(net));
        }
        match &self.console {
            Some(console) if name == CONSOLE => Ok(Slot::Console(console)),
            _ => Err(SlotError::Unknown(name.to_owned())),
        }
    }

    /// Whether there is a slot of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn check(&self, name: &str) -> Result<(), SlotError> {
        self.find(name).map(drop)
    }

    /// Joins `back_end` to the slot `name`.
    ///
    /// # Errors
    /// See [`SlotError`]; nothing has changed then, and the back end is closed.
    pub fn attach(&self, name: &str, back_end: BackEnd) -> Result<(), SlotError> {
        let slot = name.to_owned();
        match (self.find(name)?, back_end) {
            (Slot::Disk(disk), BackEnd::Disk(file)) => {
                let inserted = match Disk::new(File::from(file)) {
                    Ok(new) => new,
                    Err(source) => return Err(SlotError::Disk { slot, source }),
                };
                let act = move |blk: &mut Blk| match blk.has_disk() {
                    true => None,
                    false => Some(blk.insert(inserted)),
                };
                match disk.call(act) {
                    Ok(Some(done)) => done.map_err(|source| SlotError::Blk { slot, source }),
                    Ok(None) => Err(SlotError::InUse(slot)),
                    Err(source) => Err(SlotError::Gone { slot, source }),
                }
            }
            (Slot::Net(net), BackEnd::Tap(queues)) => {
                let act = move |net: &mut Net| match net.is_connected() {
                    true => None,
                    false => Some(net.connect(queues)),
                };
                match net.call(act) {
                    Ok(Some(done)) => done.map_err(|source| SlotError::Net { slot, source }),
                    Ok(None) => Err(SlotError::InUse(slot)),
                    Err(source) => Err(SlotError::Gone { slot, source }),
                }
            }
            (Slot::Console(console), BackEnd::Stream(stream)) => {
                let peer = match peer(stream) {
                    Ok(peer) => peer,
                    Err(source) => return Err(SlotError::Stream { slot, source }),
                };
                let act = move |console: &mut Console| {
                    let free = !console.is_attended();
                    if free {
                        console.set_interactive(Some(peer));
                    }
                    free
                };
                match console.call(act) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(SlotError::InUse(slot)),
                    Err(source) => Err(SlotError::Gone { slot, source }),
                }
            }
            (found, _) => {
                let takes = match found {
                    Slot::Disk(_) => "a disk",
                    Slot::Net(_) => "a tap device",
                    Slot::Console(_) => "a stream",
                };
                Err(SlotError::Kind { slot, takes })
            }
        }
    }

    /// Takes the back end of the slot `name` out and closes it.
    ///
    /// # Errors
    /// See [`SlotError`]; of a flush that failed the disk is out all the same.
    pub fn detach(&self, name: &str) -> Result<(), SlotError> {
        let slot = name.to_owned();
        // Whether there was something, and how it went.
        let done = match self.find(name)? {
            Slot::Disk(disk) => disk.call(|blk| blk.has_disk().then(|| blk.remove())),
            Slot::Net(net) => net.call(|net| {
                let there = net.is_connected();
                net.disconnect();
                there.then_some(Ok(()))
            }),
            Slot::Console(console) => console.call(|console| {
                let there = console.is_attended();
                console.set_interactive(None);
                there.then_some(Ok(()))
            }),
        };
        match done {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(source))) => Err(SlotError::Flush { slot, source }),
            Ok(None) => Err(SlotError::Empty(slot)),
            Err(source) => Err(SlotError::Gone { slot, source }),
        }
    }

    /// Asks the guest to have so much of the memory that can be added, and to give back so much of what
    /// there is; what is `None` stays as it is. What is refused changes nothing.
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn resize(
        &self,
        hotplug_mib: Option<u64>,
        balloon_mib: Option<u64>,
    ) -> Result<(), SlotError> {
        let gone = |slot: &str| {
            let slot = slot.to_owned();
            move |source| SlotError::Gone { slot, source }
        };
        let balloon = match balloon_mib {
            None => None,
            Some(mib) => {
                let device = self.balloon.as_ref();
                let device = device.ok_or(SlotError::NoDevice("balloon"))?;
                let memory_mib = self.memory_mib;
                let pages = mib
                    .checked_mul((1 << 20) / balloon::PAGE)
                    .and_then(|pages| u32::try_from(pages).ok())
                    .filter(|_| mib < memory_mib)
                    .ok_or(SlotError::Balloon { mib, memory_mib })?;
                Some((device, pages))
            }
        };
        if let Some(mib) = hotplug_mib {
            let memory = self.memory.as_ref();
            let memory = memory.ok_or(SlotError::NoDevice("memory that can be added"))?;
            let bytes = mib.saturating_mul(1 << 20);
            let asked = memory.call(move |memory| memory.request(bytes));
            asked
                .map_err(gone(MEMORY))?
                .map_err(|source| SlotError::Hotplug { mib, source })?;
        }
        if let Some((balloon, pages)) = balloon {
            let set = balloon.call(move |balloon| balloon.set_target(pages));
            set.map_err(gone(BALLOON))?;
        }
        Ok(())
    }

    /// The last lines that the guest wrote to its console.
    ///
    /// # Errors
    /// The machine has none, or its thread is gone.
    pub fn console_tail(&self) -> Result<String, SlotError> {
        let console = self.console.as_ref();
        let console = console.ok_or(SlotError::NoDevice(CONSOLE))?;
        let slot = CONSOLE.to_owned();
        let tail = console.call(|console| console.tail());
        tail.map_err(|source| SlotError::Gone { slot, source })
    }
}

/// Somebody at the console's interactive port.
fn peer(stream: OwnedFd) -> io::Result<Peer> {
    match socket_type(&stream)? {
        SocketType::STREAM => Peer::stream(UnixStream::from(stream)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
