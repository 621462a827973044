//! One QEMU process.

use std::{
    io,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use command_fds::{CommandFdExt, FdMapping};
use isopod_settings::Accelerator;
use tokio::time::timeout;

use super::{
    command::{CONSOLE_FD, Confinement, FS_FD, IMAGE_FD, LIFELINE_FD, QMP_FD, VSOCK_FD, launcher},
    qmp::Qmp,
    spare::SpareMemory,
};
use crate::{
    engine::{BackEnds, EngineError, Machine, Spare, console::Console, pair},
    host::{HostError, artifact, process::HostProcess, record::RecordedProcess, spawner::Spawner},
    plan::PodPlan,
};

/// From the start of the process to its greeting: it maps memory and connects its devices.
const START: Duration = Duration::from_secs(30);
/// From the announcement of its end to the end.
const ENDING: Duration = Duration::from_secs(5);

pub(super) struct QemuMachine {
    process: HostProcess,
    qmp: Qmp,
    spare: SpareMemory,
    /// What the guest writes.
    console: Console,
    /// What QEMU and its launcher write to standard error.
    errors: Console,
}

/// Starts QEMU in its jail.
pub(super) async fn start(
    plan: &PodPlan,
    back_ends: BackEnds,
    spawner: &Spawner,
) -> Result<QemuMachine, EngineError> {
    let image = artifact::open_image(&plan.vm.image).map_err(HostError::from)?;
    let (qmp, qmp_theirs) = pair("QMP socket")?;
    let (console_ours, console_theirs) = pair("console socket")?;
    let (errors_ours, errors_theirs) = pair("standard error")?;

    let paths = &plan.settings.paths;
    let mut command = Command::new(&paths.jail);
    command
        .args(launcher(&plan.vm, paths, &confinement(plan)?))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(errors_theirs));
    let mappings = [
        (image.into(), IMAGE_FD),
        (back_ends.fs, FS_FD),
        (back_ends.vsock, VSOCK_FD),
        (qmp_theirs, QMP_FD),
        (console_theirs, CONSOLE_FD),
        (back_ends.lifeline, LIFELINE_FD),
    ];
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    let mapped = command.fd_mappings(mappings.into());
    mapped.map_err(|collision| EngineError::Socket {
        what: "set of descriptors",
        source: io::Error::other(collision),
    })?;
    let child = spawner.spawn(command, artifact::REMEDY).await?;
    let process = HostProcess::new("qemu", child)?;

    let console = Console::default();
    tokio::spawn(console.clone().follow(console_ours));
    let errors = Console::default();
    tokio::spawn(errors.clone().follow(errors_ours));
    Ok(QemuMachine {
        process,
        qmp: Qmp::new(qmp),
        spare: SpareMemory::of(&plan.vm),
        console,
        errors,
    })
}

/// Under KVM, QEMU must open /dev/kvm, which belongs to a group.
fn confinement(plan: &PodPlan) -> Result<Confinement, HostError> {
    let jail = plan.settings.jail;
    let accelerator = plan.settings.qemu.accelerator;
    let gid = match accelerator {
        Accelerator::Tcg => jail.gid,
        Accelerator::Kvm => {
            let found = std::fs::metadata("/dev/kvm");
            match found.map_err(HostError::path("look at", "/dev/kvm"))?.gid() {
                0 => jail.gid,
                group => group,
            }
        }
    };
    Ok(Confinement {
        uid: jail.uid,
        gid,
        accelerator,
    })
}

#[async_trait]
impl Machine for QemuMachine {
    fn process(&self) -> RecordedProcess {
        self.process.recorded()
    }

    fn console(&self) -> &Console {
        &self.console
    }

    async fn running(&mut self) -> Result<(), EngineError> {
        match timeout(START, self.qmp.greeting()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(EngineError::Ended(self.exited().await)),
            Err(_) => Err(EngineError::Silent(START)),
        }
    }

    fn spare(&self) -> Box<dyn Spare> {
        Box::new(self.spare)
    }

    async fn exited(&mut self) -> String {
        let status = tokio::select! {
            status = self.process.exited() => status,
            // It said that it ends, or closed its control socket: then it has little time left.
            () = self.qmp.ending() => match timeout(ENDING, self.process.exited()).await {
                Ok(status) => status,
                Err(_) => {
                    if let Err(error) = self.process.kill().await {
                        return error.to_string();
                    }
                    self.process.exited().await
                }
            },
        };
        // The readers may be a few lines behind.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.reason(status)
    }

    async fn end(&mut self, grace: Duration) -> Result<(), HostError> {
        if self.qmp.quit().await && timeout(grace, self.process.exited()).await.is_ok() {
            return Ok(());
        }
        self.process.kill().await
    }
}

impl QemuMachine {
    fn reason(&self, status: ExitStatus) -> String {
        let shutdown = self.qmp.shutdown();
        let what = match (shutdown.as_deref(), status.signal(), status.code()) {
            (Some("guest-reset" | "guest-panic"), ..) if self.console.panicked() => {
                "the guest panicked".to_owned()
            }
            (Some("guest-reset"), ..) => "the guest rebooted".to_owned(),
            (Some("guest-shutdown"), ..) => "the guest powered off".to_owned(),
            (Some(reason), ..) => format!("QEMU ended ({reason})"),
            (None, Some(signal), _) => format!("QEMU was killed by signal {signal}"),
            (None, None, code) => format!("QEMU ended with code {}", code.unwrap_or_default()),
        };
        let errors = self.errors.last_words();
        if shutdown.is_none() && !errors.is_empty() {
            return self
                .console
                .explain(&format!("{what}: {}", errors.join("; ")));
        }
        self.console.explain(&what)
    }
}
