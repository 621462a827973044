//! One isopod-vmm process.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use command_fds::{CommandFdExt, FdMapping};
use isopod_config::{
    MonitorConfig, MonitorDescriptors, ProtocolConfig, RootConfig, SlotsConfig, SnapshotDescriptors,
};
use isopod_control::{monitor::Empty, monitor_ttrpc::MonitorClient};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::UnixListener;
use ttrpc::{
    asynchronous::{Client, transport::Socket},
    context,
};

use super::{
    found::Found,
    hotplug::Hotplug,
    operators::{Desk, Operators},
};
use crate::{
    engine::{BackEnds, EngineError, MEMORY_BLOCK_MIB, Machine, Spare, console::Console, pair},
    host::{HostError, artifact, process::HostProcess, record::RecordedProcess, spawner::Spawner},
    plan::PodPlan,
};

/// Descriptors as the monitor has them; with [`PARCELS_FD`] where there is a slot that somebody may come to.
const DESCRIPTORS: MonitorDescriptors = MonitorDescriptors {
    kvm: 3,
    kernel: 4,
    image: 5,
    fs: Some(6),
    vsock: Some(7),
    vsock_host: None,
    snapshot: SnapshotDescriptors {
        restore: None,
        save: None,
    },
    console: 8,
    control: 9,
    parcels: None,
    lifeline: 10,
};
const FS_FD: i32 = 6;
const VSOCK_FD: i32 = 7;
const PARCELS_FD: i32 = 11;

/// From the start of the process until its guest runs: it maps memory, loads the kernel and connects its
/// devices.
const START: Duration = Duration::from_secs(30);

/// The filter's answer to a call that is not in its table.
const SIGSYS: i32 = 31;

pub(super) struct KvmMachine {
    process: HostProcess,
    control: MonitorClient,
    /// What the guest writes.
    console: Console,
    /// What the monitor writes to standard error.
    errors: Console,
    /// What can be added to the guest's memory, in MiB.
    hotplug_mib: u64,
    /// Served as long as the machine is there.
    _operators: Operators,
}

/// What can be added to a guest's memory: whole blocks.
fn hotplug_mib(plan: &PodPlan) -> u64 {
    let spare = plan.vm.spare_memory_mib;
    spare - spare % MEMORY_BLOCK_MIB
}

/// What the monitor is told.
fn config(plan: &PodPlan, found: Found) -> MonitorConfig {
    let vm = &plan.vm;
    let slots = SlotsConfig {
        console: plan.settings.debug.console,
        balloon: true,
        hotplug_mib: hotplug_mib(plan),
        ..SlotsConfig::default()
    };
    let descriptors = MonitorDescriptors {
        parcels: slots.console.then_some(PARCELS_FD),
        ..DESCRIPTORS
    };
    MonitorConfig {
        name: vm.name.clone(),
        cpus: vm.cpus,
        memory: vm.memory,
        protocol: ProtocolConfig::default(),
        command_line: vm.kernel.command_line.clone(),
        emulated_supervisor: found.emulated_supervisor,
        root: RootConfig::Pmem,
        fs: Some(vm.fs.clone()),
        vsock: Some(vm.vsock),
        slots,
        uid: plan.settings.jail.uid,
        gid: plan.settings.jail.gid,
        descriptors,
    }
}

/// Starts the monitor.
pub(super) async fn start(
    plan: &PodPlan,
    found: Found,
    back_ends: BackEnds,
    spawner: &Spawner,
) -> Result<KvmMachine, EngineError> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.map_err(HostError::path("open", "/dev/kvm"))?;
    let kernel = artifact::open_kernel(&plan.vm.kernel.path).map_err(HostError::from)?;
    let image = artifact::open_image(&plan.vm.image).map_err(HostError::from)?;
    let (control, control_theirs) = pair("control socket")?;
    let (console_ours, console_theirs) = pair("console socket")?;
    let (errors_ours, errors_theirs) = pair("standard error")?;
    let operators = plan.paths.monitor();
    let operators =
        UnixListener::bind(&operators).map_err(HostError::path("listen at", &operators))?;
    let config = config(plan, found);
    let json = serde_json::to_vec(&config).map_err(|e| EngineError::Socket {
        what: "configuration",
        source: e.into(),
    })?;

    let mut command = Command::new(&plan.settings.paths.monitor);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::from(errors_theirs));
    let mut mappings = vec![
        (kvm.into(), DESCRIPTORS.kvm),
        (kernel.into(), DESCRIPTORS.kernel),
        (image.into(), DESCRIPTORS.image),
        (back_ends.fs, FS_FD),
        (back_ends.vsock, VSOCK_FD),
        (console_theirs, DESCRIPTORS.console),
        (control_theirs, DESCRIPTORS.control),
        (back_ends.lifeline, DESCRIPTORS.lifeline),
    ];
    let parcels = match config.descriptors.parcels {
        None => None,
        Some(child_fd) => {
            let (ours, theirs) = parcels()?;
            mappings.push((theirs, child_fd));
            Some(ours)
        }
    };
    let mappings = mappings.into_iter();
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    let mapped = command.fd_mappings(mappings.collect());
    mapped.map_err(|collision| EngineError::Socket {
        what: "set of descriptors",
        source: io::Error::other(collision),
    })?;
    let mut child = spawner.spawn(command, artifact::REMEDY).await?;
    let stdin = child.stdin.take();
    let process = HostProcess::new("isopod-vmm", child)?;
    let console = Console::default();
    tokio::spawn(console.clone().follow(console_ours));
    let errors = Console::default();
    tokio::spawn(errors.clone().follow(errors_ours));
    if let Some(mut stdin) = stdin {
        // Some hundred bytes: a pipe holds 64 KiB. End of file follows.
        stdin
            .write_all(&json)
            .map_err(|source| EngineError::Socket {
                what: "configuration",
                source,
            })?;
    }
    let control = MonitorClient::new(Client::new(Socket::new(control)));
    Ok(KvmMachine {
        process,
        _operators: Operators::start(operators, Desk::new(control.clone(), parcels)),
        control,
        console,
        errors,
        hotplug_mib: hotplug_mib(plan),
    })
}

/// Two ends of a socket for `isopod_control::parcel`.
fn parcels() -> Result<(OwnedFd, OwnedFd), EngineError> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let pair = socketpair(family, kind, SocketFlags::CLOEXEC, None);
    pair.map_err(|errno| EngineError::Socket {
        what: "socket for parcels",
        source: errno.into(),
    })
}

fn within(limit: Duration) -> context::Context {
    context::with_duration(limit)
}

#[async_trait]
impl Machine for KvmMachine {
    fn process(&self) -> RecordedProcess {
        self.process.recorded()
    }

    fn console(&self) -> &Console {
        &self.console
    }

    async fn running(&mut self) -> Result<(), EngineError> {
        let request = Empty::new();
        let booted = tokio::select! {
            booted = self.control.boot(within(START), &request) => booted,
            status = self.process.exited() => {
                return Err(EngineError::Ended(self.told(status).await));
            }
        };
        match booted {
            Ok(response) => {
                tracing::debug!(
                    since_start_us = response.since_start_us,
                    cpu_us = response.cpu_us,
                    "the guest runs"
                );
                Ok(())
            }
            // Its socket closes a moment before its end is seen.
            Err(error) => match tokio::time::timeout(START, self.process.exited()).await {
                Ok(status) => Err(EngineError::Ended(self.told(status).await)),
                Err(_) => Err(EngineError::Ended(error.to_string())),
            },
        }
    }

    fn spare(&self) -> Box<dyn Spare> {
        Box::new(Hotplug {
            mib: self.hotplug_mib,
            control: self.control.clone(),
        })
    }

    async fn exited(&mut self) -> String {
        let status = self.process.exited().await;
        self.told(status).await
    }

    async fn end(&mut self, grace: Duration) -> Result<(), HostError> {
        let asked = self.control.shut_down(within(grace), &Empty::new()).await;
        if asked.is_ok() {
            let ended = tokio::time::timeout(grace, self.process.exited()).await;
            if ended.is_ok() {
                return Ok(());
            }
        }
        self.process.kill().await
    }
}

impl KvmMachine {
    async fn told(&self, status: ExitStatus) -> String {
        // The readers may be a few lines behind.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.reason(status)
    }

    fn reason(&self, status: ExitStatus) -> String {
        let errors = self.errors.last_words().join("; ");
        let what = match (status.code(), status.signal()) {
            (Some(0), _) if self.console.panicked() => "the guest panicked".to_owned(),
            (Some(0), _) => "the guest rebooted".to_owned(),
            // The process has told which, if it could.
            (_, Some(SIGSYS)) => {
                format!("isopod-vmm made a system call that its filter forbids: {errors}")
            }
            (_, Some(signal)) => format!("isopod-vmm was killed by signal {signal}"),
            (Some(code), _) => format!("isopod-vmm ended with code {code}: {errors}"),
            (None, None) => "isopod-vmm ended".to_owned(),
        };
        self.console.explain(&what)
    }
}
