//! What a machine is put together from: opened files, connections and sizes, from the sandbox's
//! configuration or from a command line.

use std::{
    fs::File,
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use isopod_config::{CpuConfig, FsConfig, MemoryConfig, ProtocolConfig, RootConfig, VsockConfig};
use isopod_devices::{
    blk::{BlkConfig, Disk},
    console::Peer,
    net::NetConfig,
    vsock::VsockDevice,
};
use isopod_machine::Host;

use crate::snapshot::Saved;

/// A device that another process serves, at the end of a connection.
pub struct Served<C> {
    /// What it is.
    pub config: C,
    /// To the process.
    pub connection: UnixStream,
}

/// Who serves the vsock device.
pub enum Vsock {
    /// Another process.
    Served(Served<VsockConfig>),
    /// This one.
    Here(Box<VsockDevice>),
}

/// Where the guest's messages go.
pub struct Messages {
    /// Those of the serial port.
    pub serial: Box<dyn Write + Send>,
    /// Those of the console device, which keeps the last of them in any case; none: there is no such
    /// device.
    pub console: Option<Peer>,
    /// Whether the kernel's log moves from the serial port to that device.
    pub log_moves: bool,
}

/// A disk's slot and what is in it.
pub struct DiskSlot {
    /// The slot.
    pub config: BlkConfig,
    /// The disk.
    pub disk: Option<Disk>,
}

/// A network card's slot and what is in it.
pub struct NetSlot {
    /// The slot.
    pub config: NetConfig,
    /// One tap device's queues, or none.
    pub taps: Vec<OwnedFd>,
}

/// Where a guest begins.
pub enum Begin {
    /// At the first instruction of an uncompressed kernel, which is entered so.
    Kernel(File, ProtocolConfig),
    /// Where another machine was saved.
    Saved(Box<Saved>),
}

/// All that a machine is made of: opened, because the jail comes before.
pub struct Parts {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// Where the guest begins.
    pub begin: Begin,
    /// An EROFS image.
    pub image: File,
    /// How the guest gets it.
    pub root: RootConfig,
    /// Files that the guest sees as memory, beside the image.
    pub files: Vec<File>,
    /// Processors.
    pub cpus: CpuConfig,
    /// Of these may run from the boot on.
    pub granted_cpus: u32,
    /// RAM.
    pub memory: MemoryConfig,
    /// MiB that can be added.
    pub hotplug_mib: u64,
    /// What the host is.
    pub host: Host,
    /// The kernel's parameters, beside those of this machine.
    pub parameters: Vec<String>,
    /// The shared directory.
    pub fs: Option<Served<FsConfig>>,
    /// The channel to the agent.
    pub vsock: Option<Vsock>,
    /// What the guest prints.
    pub messages: Messages,
    /// Whether there is a balloon.
    pub balloon: bool,
    /// Disks.
    pub disks: Vec<DiskSlot>,
    /// Network cards.
    pub nets: Vec<NetSlot>,
}
