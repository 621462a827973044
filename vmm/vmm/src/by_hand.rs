//! `isopod-vmm run`: a machine from the command line, for debugging. It is not jailed: who calls it is
//! at its terminal, and chooses kernel and image.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, mpsc},
    time::Instant,
};

use anyhow::{Context, bail};
use isopod_config::{CpuConfig, MemoryConfig};
use isopod_hypervisor::{Hypervisor, Supervisor, Vm};
use isopod_machine::{End, Host, Machine};

use crate::assembly::{Parts, Prepares, assemble};

/// Boot a kernel by hand, without a jail, for debugging.
#[derive(clap::Args)]
pub struct Run {
    /// An uncompressed kernel (`vmlinux`).
    #[arg(long)]
    kernel: PathBuf,
    /// The guest image (EROFS); the guest's root, read-only.
    #[arg(long)]
    image: PathBuf,
    /// Where the kernel's messages go: `-` for standard output, or a file.
    #[arg(long, default_value = "-")]
    console: PathBuf,
    /// MiB of memory.
    #[arg(long, default_value_t = 128)]
    memory: u64,
    /// Back memory with 2 MiB pages.
    #[arg(long)]
    huge_pages: bool,
    /// Processors present.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Processors online at boot; without it all that are present.
    #[arg(long)]
    online: Option<u32>,
    /// Tell, at the end, what the machine did.
    #[arg(long)]
    metrics: bool,
    /// More kernel parameters.
    #[arg(trailing_var_arg = true)]
    parameters: Vec<String>,
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
    let begin = Instant::now();
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
    let parts = Parts {
        kvm: Vm::open_device()?,
        kernel: open(&run.kernel)?,
        image: open(&run.image)?,
        cpus: CpuConfig {
            boot: run.online.unwrap_or(run.cpus),
            max: run.cpus,
        },
        memory: MemoryConfig {
            size_mib: run.memory,
            huge_pages: run.huge_pages,
        },
        host,
        parameters: run.parameters,
        fs: None,
        vsock: None,
        saved: None,
        console,
    };
    let unconfined = Prepares {
        vcpu: Arc::new(|| Ok(())),
        device: Arc::new(|| Ok(())),
        watchdog: Arc::new(|| Ok(())),
    };
    let (ended, end) = mpsc::channel();
    let on_end = Box::new(move || {
        let _ = ended.send(());
    });
    let mut machine = assemble(parts, &unconfined, on_end)?;
    eprintln!("isopod-vmm: ready after {} ms", begin.elapsed().as_millis());
    machine.resume()?;
    end.recv().context("wait for the guest")?;
    let ran = begin.elapsed();
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
