//! One isopod-vmm process, started and controlled as the sandbox does it.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt, FdMapping};
use isopod_config::{MonitorConfig, SnapshotDescriptors, StateDescriptors};
use isopod_control::{
    monitor::{BootResponse, Empty, SaveResponse},
    monitor_ttrpc::MonitorClient,
};
use isopod_tests::Machine;
use ttrpc::{
    asynchronous::{Client, transport::Socket},
    context,
};

/// For one call, and for one line of the guest's.
const LIMIT: Duration = Duration::from_secs(300);
const UID: u32 = 64_999;
/// What a kernel is to run first.
const NO_PROGRAM: &str = "/no-such-program";

/// Files that a machine is saved to.
pub struct StateFiles {
    state: File,
    memory: File,
}

impl StateFiles {
    /// In memory: what a disk takes is not measured here.
    pub fn new() -> Result<Self> {
        let file = || tempfile::tempfile_in("/run").context("make a file in /run");
        Ok(Self {
            state: file()?,
            memory: file()?,
        })
    }
}

pub struct Monitor {
    child: Child,
    control: MonitorClient,
    console: BufReader<UnixStream>,
    runtime: tokio::runtime::Runtime,
    _lifeline: UnixStream,
}

impl Monitor {
    pub fn start(
        machine: &Machine,
        kernel: File,
        memory_mib: u64,
        restore: Option<&StateFiles>,
        save: Option<&StateFiles>,
    ) -> Result<Self> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let (console, console_theirs) = UnixStream::pair()?;
        let (control, control_theirs) = UnixStream::pair()?;
        let (lifeline, lifeline_theirs) = UnixStream::pair()?;
        let mut descriptors: Vec<OwnedFd> = vec![
            kvm.context("open /dev/kvm")?.into(),
            kernel.into(),
            File::open(&machine.image)
                .context("open the guest image")?
                .into(),
            console_theirs.into(),
            control_theirs.into(),
            lifeline_theirs.into(),
        ];
        let mut inherit = |files: Option<&StateFiles>| -> Result<Option<StateDescriptors>> {
            let Some(StateFiles { state, memory }) = files else {
                return Ok(None);
            };
            let number = |index: usize| 3 + i32::try_from(index).unwrap_or(0);
            let (state_fd, memory_fd) = (number(descriptors.len()), number(descriptors.len() + 1));
            descriptors.push(state.as_fd().try_clone_to_owned()?);
            descriptors.push(memory.as_fd().try_clone_to_owned()?);
            Ok(Some(StateDescriptors {
                state: state_fd,
                memory: memory_fd,
            }))
        };
        let snapshot = SnapshotDescriptors {
            restore: inherit(restore)?,
            save: inherit(save)?,
        };
        let json = serde_json::to_vec(&config(memory_mib, snapshot))?;
        let mut command = Command::new(machine.bin_dir.join("isopod-vmm"));
        let mappings = (3..).zip(descriptors);
        let mappings = mappings.map(|(child_fd, parent_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        command.fd_mappings(mappings.collect())?;
        let mut child = command.env_clear().stdin(Stdio::piped()).spawn()?;
        drop(command);
        let mut stdin = child.stdin.take().context("a pipe")?;
        stdin.write_all(&json)?;
        drop(stdin);
        console.set_read_timeout(Some(LIMIT))?;
        control.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let control = runtime.block_on(async {
            let socket = tokio::net::UnixStream::from_std(control)?;
            anyhow::Ok(MonitorClient::new(Client::new(Socket::new(socket))))
        })?;
        Ok(Self {
            child,
            control,
            console: BufReader::new(console),
            runtime,
            _lifeline: lifeline,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn boot(&self) -> Result<BootResponse> {
        let request = Empty::new();
        let call = self.control.boot(context::with_duration(LIMIT), &request);
        Ok(self.runtime.block_on(call)?)
    }

    pub fn pause(&self) -> Result<()> {
        let request = Empty::new();
        let call = self.control.pause(context::with_duration(LIMIT), &request);
        self.runtime.block_on(call)?;
        Ok(())
    }

    pub fn save(&self) -> Result<SaveResponse> {
        let request = Empty::new();
        let call = self.control.save(context::with_duration(LIMIT), &request);
        Ok(self.runtime.block_on(call)?)
    }

    /// What the guest says next.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.console.read_line(&mut line).context("the console")? == 0 {
            bail!("the monitor ended: {:?}", self.child.wait()?);
        }
        Ok(line)
    }

    /// Passes over lines up to one with this in it.
    pub fn until(&mut self, text: &str) -> Result<()> {
        while !self.line()?.contains(text) {}
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(memory_mib: u64, snapshot: SnapshotDescriptors) -> MonitorConfig {
    let mut config = MonitorConfig::bare("bench", memory_mib, UID);
    // At the end of its boot the kernel says that there is no such program.
    config.command_line.push(format!("init={NO_PROGRAM}"));
    config.descriptors.snapshot = snapshot;
    config
}
