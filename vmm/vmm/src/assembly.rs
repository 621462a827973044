//! Which devices a machine has, in which slots. The order is fixed: the guest's names for them follow
//! from it. Everything is open already ([`Parts`]), because the jail comes before.
//!
//! ```text
//!   root (pmem or blk), [pmem-0 ..], rng, [fs], [vsock], [console], [balloon], [mem], blk-0 .., net-0 ..
//! ```

use std::{fs::File, io, ops::Range};

use isopod_config::{ProtocolConfig, RootConfig};
use isopod_devices::{
    balloon::Balloon,
    blk::{Blk, BlkConfig, BlkError, Disk, DiskError, Engine},
    console::Console,
    mem::{self, Backing, Mem, MemConfig, MemError},
    net::{Net, NetError},
    pmem::{Pmem, PmemError},
    rng::Rng,
    vhost_user::{PATIENCE, VhostUser, VhostUserConfig, VhostUserError, Watchdog},
};
use isopod_machine::{
    BootProtocol, Builder, HotplugMemory, Kernel, Machine, MachineConfig, MachineError, Prepare,
    Region, Sharing,
};

use isopod_vmm::filter::Kind;

use crate::{
    parts::{Begin, DiskSlot, NetSlot, Parts, Served, Vsock},
    slots::{self, Slots, disk_name, net_name},
};

/// Descriptors of the vsock device's queues, as `isopod-fs` serves them.
const VSOCK_QUEUE_SIZE: u16 = 256;

/// Memory at an address, used in place. Its driver makes the disk in the background: it is waited for,
/// and not for ever.
const PMEM_ROOT: &str = "root=/dev/pmem0 rootfstype=erofs rootflags=dax ro rootwait=60";
/// The first disk.
const BLK_ROOT: &str = "root=/dev/vda rootfstype=erofs ro";
/// What is added is used at once, and mostly in a way that lets it be taken away again.
const HOTPLUG: &str = "memhp_default_state=online memory_hotplug.online_policy=auto-movable";
/// The kernel's log moves from the serial port to the console when that is there, if it is to.
const CONSOLE: &str = "console=hvc0";

/// A machine could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// The machine itself.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The image's device.
    #[error("the guest image: {0}")]
    Image(#[from] BlkError),
    /// The image, or another file, as memory.
    #[error("a file as memory: {0}")]
    Pmem(#[from] PmemError),
    /// The image itself.
    #[error("the guest image: {0}")]
    Disk(#[from] DiskError),
    /// A disk's slot.
    #[error("slots.disks[{index}]: {source}")]
    DiskSlot {
        /// Which.
        index: usize,
        /// Why.
        source: BlkError,
    },
    /// A network card's slot.
    #[error("slots.nets[{index}]: {source}")]
    NetSlot {
        /// Which.
        index: usize,
        /// Why.
        source: NetError,
    },
    /// The console.
    #[error("the console: {0}")]
    Console(#[source] io::Error),
    /// The region of memory that can be added.
    #[error("memory that can be added: {0}")]
    Memory(#[from] MemError),
    /// A device that another process serves.
    #[error("{device}: {source}")]
    BackEnd {
        /// Which.
        device: &'static str,
        /// Why.
        source: VhostUserError,
    },
    /// The thread that ends conversations with processes that hang.
    #[error("start the watchdog: {0}")]
    Watchdog(#[source] std::io::Error),
    /// A tag that no guest can mount.
    #[error("fs.tag = {0:?}: 1 to 36 bytes")]
    Tag(String),
}

/// What the threads of a machine do first.
pub struct Prepares {
    /// Those of processors.
    pub vcpu: Prepare,
    /// Those of devices.
    pub device: Box<dyn Fn(Kind) -> Prepare>,
    /// That of the watchdog over the processes that serve devices.
    pub watchdog: Prepare,
}

/// Puts a machine together, its guest about to take its first instruction. `on_end` is called when the
/// guest runs no further.
///
/// # Errors
/// See [`AssemblyError`].
pub fn assemble(
    parts: Parts,
    prepares: &Prepares,
    on_end: Box<dyn FnOnce() + Send>,
) -> Result<(Machine, Slots), AssemblyError> {
    let Parts {
        kvm,
        begin,
        image,
        root,
        files,
        cpus,
        granted_cpus,
        memory,
        hotplug_mib,
        host,
        parameters,
        fs,
        vsock,
        messages,
        balloon,
        disks,
        nets,
    } = parts;
    let config = MachineConfig {
        online_cpus: cpus.boot,
        cpus: cpus.max,
        granted_cpus,
        memory_mib: memory.size_mib,
        hotplug_mib,
        huge_pages: memory.huge_pages,
        host,
    };
    // A page of the guest's is nobody else's where it comes from a file.
    let sharing = match fs.is_some() || vsock.is_some() {
        true => Sharing::Shared,
        false => Sharing::Private,
    };
    let mut builder = match &begin {
        Begin::Kernel(..) => Builder::new(kvm, config)?,
        Begin::Saved(saved) => Builder::saved(kvm, config, &saved.memory, sharing)?,
    };
    let started = |kind| first(&(prepares.device)(kind));
    let mut slots = Slots {
        memory_mib: memory.size_mib,
        ..Slots::default()
    };

    let watchdog =
        Watchdog::start(PATIENCE, first(&prepares.watchdog)).map_err(AssemblyError::Watchdog)?;
    let mut words = vec![attach_root(&mut builder, root, image, &started)?.to_owned()];
    for (index, file) in files.iter().enumerate() {
        attach_file(&mut builder, &format!("pmem-{index}"), file, &started)?;
    }
    builder.attach("rng", Rng::default(), started(Kind::Plain))?;
    if let Some(Served { config, connection }) = fs {
        let front =
            VhostUserConfig::file_system(&config.tag, config.request_queues, config.queue_size)
                .ok_or(AssemblyError::Tag(config.tag))?;
        let fs = VhostUser::new(front, connection, &watchdog).map_err(back_end("fs"))?;
        builder.attach("fs", fs, started(Kind::VhostUser))?;
    }
    match vsock {
        None => {}
        Some(Vsock::Served(Served { config, connection })) => {
            let front = VhostUserConfig::vsock(config.guest_cid, VSOCK_QUEUE_SIZE);
            let vsock = VhostUser::new(front, connection, &watchdog).map_err(back_end("vsock"))?;
            builder.attach("vsock", vsock, started(Kind::VhostUser))?;
        }
        Some(Vsock::Here(vsock)) => {
            builder.attach("vsock", *vsock, started(Kind::Vsock))?;
        }
    }
    if let Some(log) = messages.console {
        let mut console = Console::new().map_err(AssemblyError::Console)?;
        console.set_log(Some(log));
        let console = builder.attach(slots::CONSOLE, console, started(Kind::Console))?;
        slots.console = Some(console);
        if messages.log_moves {
            words.push(CONSOLE.to_owned());
        }
    }
    if balloon {
        let balloon = Balloon::default();
        slots.balloon = Some(builder.attach(slots::BALLOON, balloon, started(Kind::Plain))?);
    }
    if let Some((region, memory)) = builder.take_hotplug() {
        let memory = hotplug(region, memory)?;
        slots.memory = Some(builder.attach(slots::MEMORY, memory, started(Kind::Memory))?);
        words.push(HOTPLUG.to_owned());
    }
    for (index, DiskSlot { config, disk }) in disks.into_iter().enumerate() {
        let failed = |source| AssemblyError::DiskSlot { index, source };
        let kind = match (config.read_only, config.engine) {
            (_, Engine::SideBySide) => Kind::RingDisk,
            (true, Engine::OneByOne) => Kind::ReadOnlyDisk,
            (false, Engine::OneByOne) => Kind::Disk,
        };
        let mut blk = Blk::new(config).map_err(failed)?;
        if let Some(disk) = disk {
            blk.insert(disk).map_err(failed)?;
        }
        let blk = builder.attach(&disk_name(index), blk, started(kind))?;
        slots.disks.push(blk);
    }
    for (index, NetSlot { config, taps }) in nets.into_iter().enumerate() {
        let failed = |source| AssemblyError::NetSlot { index, source };
        let mut net = Net::new(config).map_err(failed)?;
        if !taps.is_empty() {
            net.connect(taps).map_err(failed)?;
        }
        let net = builder.attach(&net_name(index), net, started(Kind::Net))?;
        slots.nets.push(net);
    }
    let console = messages.serial;
    let machine = match begin {
        Begin::Saved(saved) => builder.restore(saved.state, console, &prepares.vcpu, on_end)?,
        Begin::Kernel(mut file, protocol) => {
            words.extend(parameters);
            let kernel = Kernel {
                file: &mut file,
                protocol: match protocol {
                    ProtocolConfig::Linux64 => BootProtocol::Linux64,
                    ProtocolConfig::Pvh => BootProtocol::Pvh,
                },
                parameters: &words.join(" "),
            };
            builder.boot(kernel, console, &prepares.vcpu, on_end)?
        }
    };
    Ok((machine, slots))
}

/// The guest's root; the kernel's parameters for it.
fn attach_root<P: FnOnce() + Send + 'static>(
    builder: &mut Builder,
    root: RootConfig,
    image: File,
    started: &impl Fn(Kind) -> P,
) -> Result<&'static str, AssemblyError> {
    match root {
        RootConfig::Pmem => {
            attach_file(builder, "pmem-root", &image, started)?;
            Ok(PMEM_ROOT)
        }
        RootConfig::Blk => {
            let mut blk = Blk::new(BlkConfig {
                serial: "root".to_owned(),
                read_only: true,
                ..BlkConfig::default()
            })?;
            blk.insert(Disk::new(image)?)?;
            builder.attach("blk-root", blk, started(Kind::ReadOnlyDisk))?;
            Ok(BLK_ROOT)
        }
    }
}

/// A file as memory.
fn attach_file<P: FnOnce() + Send + 'static>(
    builder: &mut Builder,
    name: &str,
    file: &File,
    started: &impl Fn(Kind) -> P,
) -> Result<(), AssemblyError> {
    let Region { start, bytes } = builder.show_file(file)?;
    builder.attach(name, Pmem::new(start, bytes)?, started(Kind::Plain))?;
    Ok(())
}

/// Shows the guest chunks of memory as their blocks are plugged.
struct Chunks(HotplugMemory);

impl Backing for Chunks {
    fn plug(&mut self, memory: Range<u64>) -> io::Result<()> {
        self.0.plug(memory).map_err(io::Error::other)
    }

    fn unplug(&mut self, memory: Range<u64>) {
        if let Err(error) = self.0.unplug(memory) {
            tracing::warn!(%error, "mem: unplugged blocks stay visible to the guest");
        }
    }
}

fn hotplug(region: Region, memory: HotplugMemory) -> Result<Mem, MemError> {
    let config = MemConfig {
        start: region.start,
        bytes: region.bytes,
        block: mem::MIN_BLOCK,
    };
    Mem::new(config, Chunks(memory))
}

fn back_end(device: &'static str) -> impl FnOnce(VhostUserError) -> AssemblyError {
    move |source| AssemblyError::BackEnd { device, source }
}

/// A thread without its filter would be a hole in the wall: the process ends.
fn first(prepare: &Prepare) -> impl FnOnce() + Send + 'static + use<> {
    let prepare = prepare.clone();
    move || {
        if let Err(error) = prepare() {
            tracing::error!(%error, "confine a thread");
            std::process::exit(1);
        }
    }
}
