//! Starts isopod-fs, which serves the pod's shared directory and, for QEMU, its vsock.

use std::{
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream as StdStream},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use isopod_config::{FileServerConfig, VsockBackendConfig};
use tokio::{io::AsyncReadExt, net::UnixStream, time::timeout};

use crate::{
    engine::console::Console,
    host::{HostError, artifact, process::HostProcess, record::RecordedProcess, spawner::Spawner},
    plan::PodPlan,
};

const FS_FD: i32 = 3;
const VSOCK_FD: i32 = 4;
const HOST_FD: i32 = 5;
const LIFELINE_FD: i32 = 6;
const READY_FD: i32 = 7;

/// From its start until it serves.
const START: Duration = Duration::from_secs(30);

/// A running isopod-fs.
pub(crate) struct FileServer {
    process: HostProcess,
    ready: UnixStream,
    errors: Console,
}

/// What the machine's devices connect to.
pub(crate) struct FrontEnds {
    pub fs: OwnedFd,
    pub vsock: OwnedFd,
}

/// Why there is no file server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileServerError {
    /// An act on the host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A socket could not be made.
    #[error("make a socket for the file server: {0}")]
    Socket(io::Error),
    /// It could not be told what to serve.
    #[error("configure the file server: {0}")]
    Configure(io::Error),
    /// It ended before it served.
    #[error("{0}")]
    Ended(String),
    /// It did not begin to serve.
    #[error("the file server did not serve within {0:?}")]
    Silent(Duration),
}

impl From<FileServerError> for crate::Error {
    fn from(error: FileServerError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Starts the server. It is not waited for: its listeners take connections from now on.
pub(crate) async fn start(
    plan: &PodPlan,
    lifeline: OwnedFd,
    spawner: &Spawner,
) -> Result<(FileServer, FrontEnds), FileServerError> {
    let dir = &plan.paths.dir;
    let (fs, fs_listener) = connected(&dir.join("fs.sock")).map_err(FileServerError::Socket)?;
    let (vsock, vsock_listener) =
        connected(&dir.join("vsock-device.sock")).map_err(FileServerError::Socket)?;
    let host_listener = UnixListener::bind(plan.paths.vsock()).map_err(FileServerError::Socket)?;
    let (ready, ready_theirs) = StdStream::pair().map_err(FileServerError::Socket)?;
    let (errors_ours, errors_theirs) = StdStream::pair().map_err(FileServerError::Socket)?;

    let config = FileServerConfig {
        name: plan.id.clone(),
        shared_dir: plan.paths.shared(),
        fs_listener: FS_FD,
        request_queues: plan.vm.fs.request_queues,
        queue_size: plan.vm.fs.queue_size,
        vsock: Some(VsockBackendConfig {
            listener: VSOCK_FD,
            host_listener: HOST_FD,
            connect_dir: plan.paths.ports(),
            guest_cid: plan.vm.vsock.guest_cid,
        }),
        lifeline: LIFELINE_FD,
        ready: READY_FD,
    };
    let config = serde_json::to_vec(&config).map_err(|e| FileServerError::Configure(e.into()))?;

    let mut command = Command::new(&plan.settings.paths.file_server);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::from(OwnedFd::from(errors_theirs)));
    let mappings = [
        (OwnedFd::from(fs_listener), FS_FD),
        (vsock_listener.into(), VSOCK_FD),
        (host_listener.into(), HOST_FD),
        (lifeline, LIFELINE_FD),
        (ready_theirs.into(), READY_FD),
    ];
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    command
        .fd_mappings(mappings.into())
        .map_err(|collision| FileServerError::Socket(io::Error::other(collision)))?;
    let mut child = spawner.spawn(command, artifact::REMEDY).await?;
    let stdin = child.stdin.take();
    let process = HostProcess::new("isopod-fs", child)?;
    let errors = Console::default();
    let errors_ours = asynchronous(errors_ours).map_err(FileServerError::Socket)?;
    tokio::spawn(errors.clone().follow(errors_ours));
    if let Some(mut stdin) = stdin {
        // Some hundred bytes: a pipe holds 64 KiB. End of file follows.
        stdin
            .write_all(&config)
            .map_err(FileServerError::Configure)?;
    }
    let ready = asynchronous(ready).map_err(FileServerError::Socket)?;
    let server = FileServer {
        process,
        ready,
        errors,
    };
    Ok((server, FrontEnds { fs, vsock }))
}

/// A connected socket and the listener that has it in its queue; the path does not stay.
fn connected(path: &Path) -> io::Result<(OwnedFd, UnixListener)> {
    let listener = UnixListener::bind(path)?;
    let stream = StdStream::connect(path);
    std::fs::remove_file(path)?;
    Ok((stream?.into(), listener))
}

fn asynchronous(stream: StdStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

impl FileServer {
    /// For the record.
    pub fn process(&self) -> RecordedProcess {
        self.process.recorded()
    }

    /// Waits until it serves.
    pub async fn serving(&mut self) -> Result<(), FileServerError> {
        let mut line = [0; 6];
        match timeout(START, self.ready.read_exact(&mut line)).await {
            Ok(Ok(_)) if &line == b"ready\n" => Ok(()),
            Ok(_) => match timeout(START, self.exited()).await {
                Ok(reason) => Err(FileServerError::Ended(reason)),
                Err(_) => Err(FileServerError::Silent(START)),
            },
            Err(_) => Err(FileServerError::Silent(START)),
        }
    }

    /// Waits for its end and tells why. May be dropped and called again.
    pub async fn exited(&mut self) -> String {
        let status = self.process.exited().await;
        // The reader may be a few lines behind.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let errors = self.errors.last_words().join("; ");
        let colon = if errors.is_empty() { "" } else { ": " };
        format!("the file server isopod-fs ended ({status}){colon}{errors}")
    }

    /// Ends it.
    pub async fn kill(&mut self) -> Result<(), HostError> {
        self.process.kill().await
    }
}
