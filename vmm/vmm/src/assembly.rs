//! Which devices a machine has, in which slots. The order is fixed: the guest's names for them follow
//! from it.

use std::{
    fs::File,
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use isopod_config::{CpuConfig, FsConfig, MemoryConfig, VsockConfig};
use isopod_devices::{
    blk::{Blk, BlkConfig, BlkError, Disk, DiskError},
    rng::Rng,
    vhost_user::{PATIENCE, VhostUser, VhostUserConfig, VhostUserError, Watchdog},
};
use isopod_machine::{Builder, Host, Machine, MachineConfig, MachineError, Prepare, Sharing};

use crate::snapshot::Saved;

/// Descriptors of the vsock device's queues, as `isopod-fs` serves them.
const VSOCK_QUEUE_SIZE: u16 = 256;

/// Where the guest finds its root: the first disk. Not yet on pmem, where all guests would share the
/// host's pages: without `CONFIG_NVDIMM_PFN` (which selects `ND_CLAIM`) the guest's libnvdimm refuses
/// every namespace with ENXIO.
const ROOT: &str = "root=/dev/vda rootfstype=erofs ro";

/// A machine could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// The machine itself.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The image's device.
    #[error("the guest image: {0}")]
    Image(#[from] BlkError),
    /// The image itself.
    #[error("the guest image: {0}")]
    Disk(#[from] DiskError),
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

/// A device that another process serves, at the end of a connection.
pub struct Served<C> {
    /// What it is.
    pub config: C,
    /// To the process.
    pub connection: UnixStream,
}

/// All that a machine is made of: opened, because the jail comes before.
pub struct Parts {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// An uncompressed kernel.
    pub kernel: File,
    /// An EROFS image.
    pub image: File,
    /// Processors.
    pub cpus: CpuConfig,
    /// RAM.
    pub memory: MemoryConfig,
    /// What the host is.
    pub host: Host,
    /// The kernel's parameters, beside those of this machine.
    pub parameters: Vec<String>,
    /// The shared directory.
    pub fs: Option<Served<FsConfig>>,
    /// The channel to the agent.
    pub vsock: Option<Served<VsockConfig>>,
    /// Go on where another machine was saved, in place of booting the kernel.
    pub saved: Option<Saved>,
    /// What the kernel prints.
    pub console: Box<dyn Write + Send>,
}

/// What the threads of a machine do first.
pub struct Prepares {
    /// Those of processors.
    pub vcpu: Prepare,
    /// Those of devices.
    pub device: Prepare,
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
) -> Result<Machine, AssemblyError> {
    let Parts {
        kvm,
        mut kernel,
        image,
        cpus,
        memory,
        host,
        parameters,
        fs,
        vsock,
        saved,
        console,
    } = parts;
    let config = MachineConfig {
        online_cpus: cpus.boot,
        cpus: cpus.max,
        memory_mib: memory.size_mib,
        huge_pages: memory.huge_pages,
        host,
    };
    // A page of the guest's is nobody else's where it comes from a file.
    let sharing = match fs.is_some() || vsock.is_some() {
        true => Sharing::Shared,
        false => Sharing::Private,
    };
    let mut builder = match &saved {
        None => Builder::new(kvm, config)?,
        Some(saved) => Builder::saved(kvm, config, &saved.memory, sharing)?,
    };
    let mut root = Blk::new(BlkConfig {
        serial: "root".to_owned(),
        read_only: true,
        ..BlkConfig::default()
    })?;
    root.insert(Disk::new(image)?)?;
    builder.attach("blk-root", root, started(&prepares.device))?;
    builder.attach("rng", Rng::default(), started(&prepares.device))?;
    let watchdog =
        Watchdog::start(PATIENCE, started(&prepares.watchdog)).map_err(AssemblyError::Watchdog)?;
    if let Some(Served { config, connection }) = fs {
        let front =
            VhostUserConfig::file_system(&config.tag, config.request_queues, config.queue_size)
                .ok_or(AssemblyError::Tag(config.tag))?;
        let fs = VhostUser::new(front, connection, &watchdog).map_err(back_end("fs"))?;
        builder.attach("fs", fs, started(&prepares.device))?;
    }
    if let Some(Served { config, connection }) = vsock {
        let front = VhostUserConfig::vsock(config.guest_cid, VSOCK_QUEUE_SIZE);
        let vsock = VhostUser::new(front, connection, &watchdog).map_err(back_end("vsock"))?;
        builder.attach("vsock", vsock, started(&prepares.device))?;
    }
    if let Some(saved) = saved {
        return Ok(builder.restore(saved.state, console, &prepares.vcpu, on_end)?);
    }
    let parameters = format!("{ROOT} {}", parameters.join(" "));
    Ok(builder.boot(&mut kernel, &parameters, console, &prepares.vcpu, on_end)?)
}

fn back_end(device: &'static str) -> impl FnOnce(VhostUserError) -> AssemblyError {
    move |source| AssemblyError::BackEnd { device, source }
}

/// A thread without its filter would be a hole in the wall: the process ends.
fn started(prepare: &Prepare) -> impl FnOnce() + Send + 'static {
    let prepare = prepare.clone();
    move || {
        if let Err(error) = prepare() {
            tracing::error!(%error, "confine a thread");
            std::process::exit(1);
        }
    }
}
