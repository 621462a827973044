//! An `isopod-fs` process as the sandbox starts it: PID 1 of a PID namespace, its directory a shared
//! mount. All mounts are made in a mount namespace of the test's own thread.

use std::{
    io::{PipeReader, PipeWriter, Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};
use isopod_config::{FileServerConfig, VsockBackendConfig};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::process::geteuid;

/// Mounting and namespaces take root. Says so by name otherwise.
pub fn can_run(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        println!("SKIPPED {test}: it takes root");
    }
    root
}

pub struct Process {
    pub child: Child,
    /// The pod's directory, with `shared` in it.
    pub pod: tempfile::TempDir,
    /// The front end's end of the virtio-fs connection.
    pub socket: Option<UnixStream>,
    /// The same for vsock, when it is served.
    pub vsock: Option<UnixStream>,
    pub lifeline: Option<PipeWriter>,
    pub ready: PipeReader,
    /// What the process can read that it must not: a file beside its root.
    pub secret: PathBuf,
}

impl Process {
    /// Starts a server. The calling thread leaves its mount and PID namespaces for good: call this
    /// once per thread.
    pub fn start(vsock: bool) -> Self {
        Self::start_with(vsock, |pod| pod.join("shared"))
    }

    /// The same with another directory to serve: `shared` is a mount point, `plain` is not.
    pub fn start_with(vsock: bool, served: impl Fn(&Path) -> PathBuf) -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).unwrap();
        change("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        let pod = tempfile::tempdir().unwrap();
        let shared = pod.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::create_dir(pod.path().join("plain")).unwrap();
        let none = None::<&str>;
        mount(
            Some("tmpfs"),
            &shared,
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        change(&shared, MsFlags::MS_SHARED);
        let secret = pod.path().join("secret");
        std::fs::write(&secret, "of the host").unwrap();

        let (listener, socket) = connected(&pod.path().join("fs"));
        let (lifeline_end, lifeline) = std::io::pipe().unwrap();
        let (ready, ready_end) = std::io::pipe().unwrap();
        let mut descriptors: Vec<OwnedFd> =
            vec![listener.into(), lifeline_end.into(), ready_end.into()];
        let mut vsock_socket = None;
        let vsock = vsock.then(|| {
            let (listener, socket) = connected(&pod.path().join("vs"));
            vsock_socket = Some(socket);
            let host = UnixListener::bind(pod.path().join("vsock.sock")).unwrap();
            descriptors.extend([OwnedFd::from(listener), OwnedFd::from(host)]);
            VsockBackendConfig {
                listener: 13,
                host_listener: 14,
                connect_dir: pod.path().to_owned(),
                guest_cid: 3,
            }
        });
        let config = FileServerConfig {
            name: "test".into(),
            shared_dir: served(pod.path()),
            fs_listener: 10,
            request_queues: 1,
            queue_size: 128,
            vsock,
            lifeline: 11,
            ready: 12,
        };
        let child = spawn(&config, descriptors);
        Self {
            child,
            pod,
            socket: Some(socket),
            vsock: vsock_socket,
            lifeline: Some(lifeline),
            ready,
            secret,
        }
    }

    /// Starts a server and waits until it is jailed and serves.
    pub fn ready(vsock: bool) -> Self {
        let mut process = Self::start(vsock);
        let mut line = String::new();
        process.ready.read_to_string(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        process
    }

    pub fn shared(&self) -> PathBuf {
        self.pod.path().join("shared")
    }

    /// A line of `/proc/PID/status`.
    pub fn status(&self, field: &str) -> String {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field} in status"))
            .trim()
            .to_owned()
    }

    pub fn proc(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.child.id().to_string())
            .join(path)
    }

    /// How it ended; panics if it does not within some seconds.
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "isopod-fs does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = nix::mount::umount2(&self.shared(), nix::mount::MntFlags::MNT_DETACH);
    }
}

pub fn change(target: impl AsRef<Path>, flags: MsFlags) {
    let none = None::<&str>;
    mount(none, target.as_ref(), none, flags, none).unwrap();
}

fn connected(path: &Path) -> (UnixListener, UnixStream) {
    let listener = UnixListener::bind(path).unwrap();
    let socket = UnixStream::connect(path).unwrap();
    std::fs::remove_file(path).unwrap();
    (listener, socket)
}

fn spawn(config: &FileServerConfig, descriptors: Vec<OwnedFd>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isopod-fs"));
    let mapped = (10..).zip(descriptors);
    let mapped = mapped.map(|(child_fd, parent_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    command.fd_mappings(mapped.collect()).unwrap();
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let json = serde_json::to_vec(config).unwrap();
    child.stdin.take().unwrap().write_all(&json).unwrap();
    child
}
