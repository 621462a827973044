//! The agent's side of `init`: start it, hand it its job, hear what it tells.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use crate::{
    init::INIT_NAME,
    job::{Also, Failure, FailureKind, Job, Join, Layout, Task, Told},
};

/// Longest message in bytes; a failure's text is cut to fit.
pub(crate) const MESSAGE_LEN: usize = 16 << 10;
/// More descriptors than a job ever has.
pub(crate) const MAX_FDS: usize = 16;

/// Why `init` could not be started or heard.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The job could not be written down.
    #[error("write the job of a new process: {0}")]
    WriteJob(#[source] io::Error),
    /// No channel.
    #[error("make the channel to a new process: {0}")]
    MakeChannel(#[source] io::Error),
    /// fork or exec of the agent's own binary failed.
    #[error("start a new process: {0}")]
    Spawn(#[source] io::Error),
    /// The job could not be sent.
    #[error("send a new process its job: {0}")]
    SendJob(#[source] io::Error),
}

/// The child's ends of its standard streams.
#[derive(Debug)]
pub enum Streams {
    /// A pty is made; its master comes with [`Report::Ready`].
    Terminal,
    /// Three descriptors.
    Plain([OwnedFd; 3]),
}

/// A namespace that containers of a pod can share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceKind {
    /// System V IPC and message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Process ids.
    Pid,
    /// User and group ids.
    User,
}

/// Namespaces to join instead of making new ones.
pub type Namespaces<'a> = Vec<(NamespaceKind, BorrowedFd<'a>)>;

/// What the agent tells `init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The pid of [`Report::Forked`] is registered.
    Known,
    /// Execute the command.
    Start,
}

/// What `init` tells the agent.
#[derive(Debug)]
pub enum Report {
    /// The container's process exists, with this pid. Answer [`Word::Known`].
    Forked(i32),
    /// All is done but exec; the master of its terminal when it has one.
    Ready(Option<OwnedFd>),
    /// It failed and is gone, or soon will be.
    Failed(Failure),
    /// After [`Word::Start`]: it runs. Before: it died.
    Closed,
}

/// A process in the making. Dropping it before its start ends the process.
#[derive(Debug)]
pub struct Launch {
    channel: OwnedFd,
}

impl Launch {
    /// Starts the making of a container's first process. `spec` has passed [`crate::spec::check`];
    /// `cgroup` is its open cgroup directory (`None`: the agent's); `anchor` an empty directory.
    pub fn create(
        spec: Spec,
        streams: Streams,
        cgroup: Option<BorrowedFd<'_>>,
        joins: &Namespaces<'_>,
        anchor: PathBuf,
    ) -> Result<Self, LaunchError> {
        let task = Task::Create {
            spec: Box::new(spec),
            anchor,
        };
        let joins = joins
            .iter()
            .map(|(kind, fd)| {
                let join = match kind {
                    NamespaceKind::Ipc => Join::Ipc,
                    NamespaceKind::Uts => Join::Uts,
                    NamespaceKind::Pid => Join::Pid,
                    NamespaceKind::User => Join::User,
                };
                (join, *fd)
            })
            .collect();
        Self::begin(task, streams, cgroup, joins)
    }

    /// Starts the making of one more process in the namespaces of the process behind `init`, a pidfd.
    /// `seccomp` is the container's filter.
    pub fn exec(
        process: Process,
        seccomp: Option<LinuxSeccomp>,
        also: Also,
        streams: Streams,
        cgroup: Option<BorrowedFd<'_>>,
        init: BorrowedFd<'_>,
    ) -> Result<Self, LaunchError> {
        let task = Task::Exec {
            process: Box::new(process),
            seccomp: seccomp.map(Box::new),
            also,
        };
        Self::begin(task, streams, cgroup, vec![(Join::Everything, init)])
    }

    fn begin(
        task: Task,
        streams: Streams,
        cgroup: Option<BorrowedFd<'_>>,
        joins: Vec<(Join, BorrowedFd<'_>)>,
    ) -> Result<Self, LaunchError> {
        let job = Job {
            task,
            terminal: matches!(streams, Streams::Terminal),
            layout: Layout {
                cgroup: cgroup.is_some(),
                joins: joins.iter().map(|(join, _)| *join).collect(),
            },
        };
        let paper = write_job(&job).map_err(LaunchError::WriteJob)?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| LaunchError::MakeChannel(e.into()))?;

        // Not waited for here: the agent's one reaper collects it.
        Command::new("/proc/self/exe")
            .arg0(INIT_NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(LaunchError::Spawn)?;

        let mut fds = vec![paper.as_fd()];
        fds.extend(cgroup);
        if let Streams::Plain(ends) = &streams {
            fds.extend(ends.iter().map(AsFd::as_fd));
        }
        fds.extend(joins.iter().map(|(_, fd)| *fd));
        send(ours.as_fd(), b"job", &fds).map_err(LaunchError::SendJob)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|e| LaunchError::MakeChannel(e.into()))?;
        Ok(Self { channel: ours })
    }

    /// The next report, or [`io::ErrorKind::WouldBlock`].
    pub fn try_receive(&self) -> io::Result<Report> {
        let (message, mut fds) = match receive(self.channel.as_fd()) {
            Ok(received) => received,
            Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => return Ok(Report::Closed),
            Err(e) => return Err(e),
        };
        if message.is_empty() {
            return Ok(Report::Closed);
        }
        Ok(match serde_json::from_slice(&message)? {
            Told::Forked(pid) => Report::Forked(pid),
            Told::Ready => Report::Ready(fds.pop()),
            Told::Failed(failure) => Report::Failed(failure),
        })
    }

    /// Says `word`; does not block, a word is one byte.
    pub fn say(&self, word: Word) -> io::Result<()> {
        let byte = match word {
            Word::Known => b"K",
            Word::Start => b"S",
        };
        send(self.channel.as_fd(), byte, &[])
    }
}

impl AsRawFd for Launch {
    fn as_raw_fd(&self) -> RawFd {
        self.channel.as_raw_fd()
    }
}

impl AsFd for Launch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

fn write_job(job: &Job) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("job", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(job)?)?;
    Ok(file.into())
}

/// Sends one message with descriptors.
pub(crate) fn send(to: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    sendmsg(
        to,
        &[IoSlice::new(message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message with its descriptors; empty when the other side closed.
pub(crate) fn receive(from: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; MESSAGE_LEN];
    let result = loop {
        match recvmsg(
            from,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(rustix::io::Errno::INTR) => continue,
            other => break other?,
        }
    };
    message.truncate(result.bytes);
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    Ok((message, fds))
}

/// Sends what `init` has to tell.
pub(crate) fn tell(to: BorrowedFd<'_>, told: &Told, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let message = match serde_json::to_vec(told) {
        Ok(message) if message.len() <= MESSAGE_LEN => message,
        _ => serde_json::to_vec(&Told::Failed(Failure {
            kind: FailureKind::System,
            message: "the failure is too long to tell".to_owned(),
        }))?,
    };
    send(to, &message, fds)
}
