//! One agent, its root filesystem and its client.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio as ProcessStdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use isopod_protocol::{
    agent::{
        ContainerRequest, CreateRequest, Event, EventsRequest, ExecRequest, ExitStatus,
        KillRequest, ProcessRequest, Stdio,
    },
    agent_ttrpc::AgentClient,
    stream::Header,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use ttrpc::context::with_timeout;

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "id", "ls", "sleep", "true", "false", "head", "stty", "tty", "env", "pwd",
    "grep", "kill", "dd", "md5sum", "touch", "mkdir", "mount", "readlink", "wc", "hostname", "seq",
    "stat", "ps", "umask", "yes", "tr", "mknod", "uname", "ionice", "cut", "ln",
];

/// How long any call may take, nanoseconds: a busy machine is no failure.
const CALL: i64 = 300_000_000_000;

pub struct Guest {
    // Before the directory: fields are dropped in order, and the agent's mounts go with it.
    agent: Agent,
    directory: tempfile::TempDir,
    pub client: AgentClient,
    next: AtomicU64,
}

/// Where this machine has cgroup v2.
fn cgroup_root() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.procs").exists() && path.join("cgroup.controllers").exists())
}

impl Guest {
    /// `None` on a machine that cannot run it.
    pub async fn start() -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("skipped: {why}");
            None::<Self>
        };
        if !nix::unistd::geteuid().is_root() {
            return skip("not root");
        }
        let Some(root) = cgroup_root() else {
            return skip("no cgroup v2");
        };
        if !Path::new("/bin/busybox").exists() {
            return skip("no busybox");
        }
        let directory = tempfile::tempdir().expect("tmp");
        let rootfs = directory.path().join("rootfs");
        for name in ["bin", "etc", "tmp"] {
            fs::create_dir_all(rootfs.join(name)).expect("mkdir");
        }
        fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox");
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).expect("link");
        }
        fs::write(rootfs.join("etc/plain"), "not a program\n").expect("write");
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/srv/web:/bin/sh\n",
        )
        .expect("write");
        let name = directory.path().file_name().expect("a name");
        let cgroup = root.join(format!("isopod-test-{}", name.to_string_lossy()));
        fs::create_dir(&cgroup).expect("cgroup");
        let child = Command::new("unshare")
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--mount",
                "--mount-proc",
                "--uts",
                "--ipc",
            ])
            .args(["--propagation", "private"])
            .arg(env!("CARGO_BIN_EXE_isopod-agent"))
            .arg("--test-listen")
            .arg(directory.path())
            .arg(&cgroup)
            .stdin(ProcessStdio::null())
            .spawn()
            .expect("unshare runs");
        let agent = Agent { child, cgroup };
        // The second of its sockets; a file that is bound may not be listened on yet.
        let socket = directory.path().join("stdio.sock");
        for _ in 0..30_000 {
            if UnixStream::connect(&socket).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let socket = directory.path().join("agent.sock");
        let client = ttrpc::r#async::Client::connect(&format!("unix://{}", socket.display()))
            .await
            .expect("the agent listens");
        Some(Self {
            agent,
            directory,
            client: AgentClient::new(client),
            next: AtomicU64::new(1),
        })
    }

    /// A specification as containerd makes it, patched (RFC 7396).
    pub fn spec(&self, args: &[&str], patch: Value) -> Value {
        let caps = [
            "CAP_CHOWN",
            "CAP_KILL",
            "CAP_NET_BIND_SERVICE",
            "CAP_SETUID",
            "CAP_SETGID",
        ];
        let mut spec = json!({
            "ociVersion": "1.1.0",
            "process": {
                "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1000, "soft": 512}],
                "noNewPrivileges": true
            },
            "root": {"path": self.directory.path().join("rootfs"), "readonly": false},
            "hostname": "inside",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["ro", "nosuid", "noexec", "nodev"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
            ],
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "cgroupsPath": "/default/x",
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
                ],
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware", "/no/such"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
            }
        });
        merge(&mut spec, patch);
        spec
    }

    pub fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    pub fn tmp(&self) -> &Path {
        self.directory.path()
    }

    pub fn cgroup(&self, id: &str) -> PathBuf {
        self.agent.cgroup.join(format!("container-{id}"))
    }

    /// A new stream and its id.
    pub async fn stream(&self) -> (u64, UnixStream) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut stream = UnixStream::connect(self.directory.path().join("stdio.sock"))
            .await
            .expect("the agent listens");
        stream
            .write_all(&Header { id }.encode())
            .await
            .expect("header");
        (id, stream)
    }

    pub async fn create(&self, id: &str, spec: &Value, stdio: Stdio) -> ttrpc::Result<u32> {
        let mut request = CreateRequest::new();
        request.container_id = id.to_owned();
        request.spec_json = serde_json::to_vec(spec).expect("JSON");
        request.stdio = Some(stdio).into();
        let response = self.client.create(with_timeout(CALL), &request).await?;
        Ok(response.pid)
    }

    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: &Value,
        stdio: Stdio,
    ) -> ttrpc::Result<()> {
        let mut request = ExecRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec.to_owned();
        request.process_json = serde_json::to_vec(process).expect("JSON");
        request.stdio = Some(stdio).into();
        self.client.exec(with_timeout(CALL), &request).await?;
        Ok(())
    }

    pub fn process(id: &str, exec: &str) -> ProcessRequest {
        let mut request = ProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec.to_owned();
        request
    }

    pub fn container(id: &str) -> ContainerRequest {
        let mut request = ContainerRequest::new();
        request.container_id = id.to_owned();
        request
    }

    pub async fn start_process(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = Self::process(id, exec);
        Ok(self.client.start(with_timeout(CALL), &request).await?.pid)
    }

    pub async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<ExitStatus> {
        let request = Self::process(id, exec);
        self.client.delete(with_timeout(CALL), &request).await
    }

    pub async fn kill(&self, id: &str, exec: &str, signal: u32, all: bool) -> ttrpc::Result<()> {
        let mut request = KillRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec.to_owned();
        request.signal = signal;
        request.all = all;
        self.client.kill(with_timeout(CALL), &request).await?;
        Ok(())
    }

    /// Every event so far, without acknowledging.
    pub async fn all_events(&self) -> Vec<Event> {
        let mut request = EventsRequest::new();
        request.after = 0;
        let response = self.client.events(with_timeout(CALL), &request).await;
        response.expect("events").events
    }

    /// Waits for a process's exit event.
    pub async fn exit_of(&self, id: &str, exec: &str) -> u32 {
        for _ in 0..30_000 {
            let events = self.all_events().await;
            let found = events.iter().find(|event| {
                event.container_id == id && event.has_exited() && event.exited().exec_id == exec
            });
            if let Some(event) = found {
                return event.exited().exit.code;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no exit of {id} {exec:?}");
    }

    /// Runs a container to its end: (exit code, stdout, stderr).
    pub async fn run(&self, id: &str, spec: &Value) -> (u32, String, String) {
        let (out_id, mut out) = self.stream().await;
        let (err_id, mut err) = self.stream().await;
        let mut stdio = Stdio::new();
        stdio.stdout = out_id;
        stdio.stderr = err_id;
        self.create(id, spec, stdio).await.expect("create");
        self.start_process(id, "").await.expect("start");
        let (mut stdout, mut stderr) = (String::new(), String::new());
        out.read_to_string(&mut stdout).await.expect("stdout");
        err.read_to_string(&mut stderr).await.expect("stderr");
        let code = self.exit_of(id, "").await;
        let exit = self.delete(id, "").await.expect("delete");
        assert_eq!(exit.code, code);
        (code, stdout, stderr)
    }

    /// A container that sleeps until it is killed.
    pub async fn sleeper(&self, id: &str, patch: Value) {
        let spec = self.spec(&["sleep", "1000"], patch);
        self.create(id, &spec, Stdio::new()).await.expect("create");
        self.start_process(id, "").await.expect("start");
    }
}

/// The agent's process and what it leaves.
struct Agent {
    child: Child,
    cgroup: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // --kill-child: the agent, and with its pid namespace everything, goes with unshare.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for _ in 0..200 {
            for entry in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            if fs::remove_dir(&self.cgroup).is_ok() || !self.cgroup.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("left behind: {}", self.cgroup.display());
    }
}

/// RFC 7396, but arrays of the patch replace whole.
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(&key);
                } else {
                    merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch,
    }
}

/// The status code and message of a failed call.
pub fn status(error: ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("not a status: {other}"),
    }
}
