//! `isopod-vmm run`: a machine from the command line, for debugging. It is not jailed: who calls it is
//! at its terminal, and chooses kernel and image.

mod devices;
mod saving;
mod signals;

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, bail};
use isopod_config::{CpuConfig, MemoryConfig, ProtocolConfig, RootConfig};
use isopod_hypervisor::{Hypervisor, Supervisor, Vm};
use isopod_machine::{End, Host, Machine};

use crate::{
    assembly::{Prepares, assemble},
    parts::{Begin, Messages, Parts},
};
use signals::{Asked, Heard, Word};

/// Boot a kernel by hand, without a jail, for debugging.
///
/// The guest has an entropy device and its image, and what is asked for below.
#[derive(clap::Args)]
pub struct Run {
    /// An uncompressed kernel (`vmlinux`).
    #[arg(
        long,
        required_unless_present = "restore_from",
        conflicts_with = "restore_from"
    )]
    kernel: Option<PathBuf>,
    /// How the kernel is entered: by Linux's 64-bit boot protocol, or by PVH, for kernels that offer
    /// nothing else.
    #[arg(long, value_enum, default_value_t = Protocol::Linux64, conflicts_with = "restore_from")]
    protocol: Protocol,
    /// The guest image (EROFS); the guest's root, read-only.
    #[arg(long)]
    image: PathBuf,
    /// How the guest gets it: as memory used in place, or as a disk.
    #[arg(long, value_enum, default_value_t = Root::Pmem)]
    root: Root,
    /// Where the kernel's messages go: `-` for standard output, or a file.
    #[arg(long, default_value = "-")]
    console: PathBuf,
    /// Give the guest a console device too. The kernel's messages move to it when it is there; or, with a
    /// file, they stay where they are, and the file gets what programs write to the device.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true)]
    virtio_console: Option<Option<PathBuf>>,
    /// MiB of memory.
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// MiB that memory can grow to (virtio-mem); a multiple of 128 above --memory. All of what can be
    /// added is asked for at once; SIGUSR1 asks for all of it back, SIGUSR2 gives it again.
    #[arg(long)]
    memory_max: Option<u64>,
    /// Give the guest a balloon, which returns free pages to the host; with a number, so many MiB of its
    /// memory are asked back at once.
    #[arg(
        long,
        value_name = "MIB",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "0"
    )]
    balloon: Option<u64>,
    /// Back memory with 2 MiB pages.
    #[arg(long)]
    huge_pages: bool,
    /// Processors present.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Processors online at boot; without it all that are present.
    #[arg(long)]
    online: Option<u32>,
    /// A disk: a file or block device; with `,ro` the guest may only read, with `,ring` requests run side
    /// by side. May be given again.
    #[arg(long, value_name = "PATH[,ro][,ring]")]
    disk: Vec<String>,
    /// A file shown as memory that the guest cannot write, of a multiple of 2 MiB. May be given again.
    #[arg(long, value_name = "PATH")]
    pmem: Vec<PathBuf>,
    /// A network card at the tap device of this name, which is made if there is none. May be given again.
    #[arg(long, value_name = "NAME")]
    tap: Vec<String>,
    /// The shared directory: a socket that a file server (vhost-user) listens on, and the tag to mount it
    /// by, `shared` unless it is named.
    #[arg(long, value_name = "SOCKET[,TAG]")]
    fs: Option<String>,
    /// A socket device whose guest has the context id 3: programs say `CONNECT port` on a listening
    /// socket made here, and are connected to by the guest at `vsock_PORT` beside it.
    #[arg(long, value_name = "SOCKET")]
    vsock: Option<PathBuf>,
    /// Save the machine when SIGINT (Ctrl-C) or SIGTERM asks for its end, and end then: the files `state`
    /// and `memory` of this directory, which is made if there is none, are written over. A machine whose
    /// guest has mounted --fs cannot be saved. Without this such a signal ends the process at once.
    #[arg(long, value_name = "DIR")]
    save_to: Option<PathBuf>,
    /// Go on where the machine was that was saved to this directory, in place of booting a kernel. Every
    /// other flag must say what it said then; disks must hold what they held. The files stay as they are
    /// and must not change while this machine runs.
    #[arg(long, value_name = "DIR", conflicts_with = "parameters")]
    restore_from: Option<PathBuf>,
    /// Tell, at the end, what the machine did.
    #[arg(long)]
    metrics: bool,
    /// More kernel parameters.
    #[arg(trailing_var_arg = true)]
    parameters: Vec<String>,
}

/// Of [`Run::root`].
#[derive(Clone, Copy, clap::ValueEnum)]
enum Root {
    Pmem,
    Blk,
}

/// Of [`Run::protocol`].
#[derive(Clone, Copy, clap::ValueEnum)]
enum Protocol {
    Linux64,
    Pvh,
}

impl From<Protocol> for ProtocolConfig {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Linux64 => Self::Linux64,
            Protocol::Pvh => Self::Pvh,
        }
    }
}

/// Prints what this machine's KVM is.
pub fn probe() -> anyhow::Result<()> {
    let found = Hypervisor::probe().context("this machine's KVM")?;
    let json = serde_json::json!({
        "emulated_supervisor": found.supervisor == Supervisor::Emulated,
        "instructions_per_second": found.instructions_per_second,
    });
    println!("{json}");
    Ok(())
}

/// Boots and waits for the end.
pub fn run(run: Run) -> anyhow::Result<()> {
    let start = Instant::now();
    let open = |path: &PathBuf| File::open(path).with_context(|| path.display().to_string());
    let found = Hypervisor::probe().context("this machine's KVM")?;
    let host = match found.supervisor {
        Supervisor::Hardware => Host::Hardware,
        Supervisor::Emulated => {
            eprintln!(
                "isopod-vmm: this KVM interprets supervisor mode ({:.2} million instructions a \
                 second): the guest's kernel will be slow",
                found.instructions_per_second / 1e6
            );
            Host::Emulated
        }
    };
    let console: Box<dyn Write + Send> = if run.console.as_os_str() == "-" {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(&run.console).with_context(|| run.console.display().to_string())?)
    };
    let log = match &run.virtio_console {
        None => None,
        Some(None) => Some(devices::log(&run.console)?),
        Some(Some(path)) => {
            File::create(path).with_context(|| path.display().to_string())?;
            Some(devices::log(path)?)
        }
    };
    let hotplug_mib = match run.memory_max {
        None => 0,
        Some(most) => most
            .checked_sub(run.memory)
            .with_context(|| format!("--memory-max {most}: less than --memory {}", run.memory))?,
    };
    let begin = match (&run.restore_from, &run.kernel) {
        (Some(directory), _) => Begin::Saved(Box::new(saving::open(directory)?)),
        (None, Some(kernel)) => Begin::Kernel(open(kernel)?, run.protocol.into()),
        // clap does not let it come to this.
        (None, None) => bail!("one of --kernel and --restore-from is needed"),
    };
    let files = match &run.save_to {
        None => None,
        Some(directory) => Some(saving::make(directory, run.restore_from.as_deref())?),
    };
    let parts = Parts {
        kvm: Vm::open_device()?,
        begin,
        image: open(&run.image)?,
        root: match run.root {
            Root::Pmem => RootConfig::Pmem,
            Root::Blk => RootConfig::Blk,
        },
        files: run.pmem.iter().map(open).collect::<Result<_, _>>()?,
        cpus: CpuConfig {
            boot: run.online.unwrap_or(run.cpus),
            max: run.cpus,
        },
        // Nobody could grant more later.
        granted_cpus: run.cpus,
        memory: MemoryConfig {
            size_mib: run.memory,
            huge_pages: run.huge_pages,
        },
        hotplug_mib,
        host,
        parameters: run.parameters,
        fs: run.fs.as_deref().map(devices::fs).transpose()?,
        vsock: run.vsock.as_deref().map(devices::vsock).transpose()?,
        messages: Messages {
            serial: console,
            console: log,
            log_moves: matches!(run.virtio_console, Some(None)),
        },
        balloon: run.balloon.is_some(),
        disks: run
            .disk
            .iter()
            .map(|disk| devices::slot(disk))
            .collect::<Result<_, _>>()?,
        nets: (0..)
            .zip(&run.tap)
            .map(|(n, name)| devices::card(n, name))
            .collect::<Result<_, _>>()?,
    };
    let unconfined = Prepares {
        vcpu: Arc::new(|| Ok(())),
        device: Box::new(|_| Arc::new(|| Ok(()))),
        watchdog: Arc::new(|| Ok(())),
    };
    // Signals are caught from here on, so that none is lost.
    let mut asked = Asked::new(Heard {
        save: files.is_some(),
        memory: hotplug_mib > 0,
    })?;
    let on_end = asked.on_end();
    let (mut machine, slots) = assemble(parts, &unconfined, on_end)?;
    let asked_for = |mib: u64| (mib > 0).then_some(mib);
    slots.resize(asked_for(hotplug_mib), run.balloon.and_then(asked_for))?;
    eprintln!("isopod-vmm: ready after {} ms", start.elapsed().as_millis());
    machine.resume()?;
    loop {
        match (asked.next(), &files) {
            (Word::TakeMemory, _) => slots.resize(Some(0), None)?,
            (Word::GiveMemory, _) => slots.resize(Some(hotplug_mib), None)?,
            (Word::Save, Some(files)) => {
                machine.pause()?;
                let written = files.save(&machine)?;
                eprintln!(
                    "isopod-vmm: saved {} KiB of memory, {} of state",
                    written.memory >> 10,
                    written.state >> 10
                );
                break;
            }
            (Word::Save, None) | (Word::Ended, _) => break,
        }
    }
    let ran = start.elapsed();
    let end = machine.stop()?;
    eprintln!("isopod-vmm: ended after {:.3} s", ran.as_secs_f64());
    if run.metrics {
        print_metrics(&machine)?;
    }
    match end {
        End::Reset | End::Stopped => Ok(()),
        End::Failed(error) => bail!(error),
    }
}

fn print_metrics(machine: &Machine) -> anyhow::Result<()> {
    let metrics = machine.metrics()?;
    for (id, counters) in metrics.vcpus.iter().enumerate() {
        eprintln!("vcpu {id}: {counters:?}");
    }
    for (name, figures) in &metrics.devices {
        eprintln!("{name}: {figures:?}");
    }
    eprintln!("unanswered accesses: {}", metrics.unanswered);
    Ok(())
}
