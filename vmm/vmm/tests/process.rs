//! The whole process, jailed, with kernels of a few instructions. Needs root and /dev/kvm; without them
//! there is nothing to see, and the tests say so.

use std::{
    fs::{self, File},
    io::{PipeReader, PipeWriter, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};
use isopod_config::{CpuConfig, MemoryConfig, MonitorConfig, MonitorDescriptors};
use isopod_control::{monitor::Empty, monitor_ttrpc::MonitorClient};
use ttrpc::{
    asynchronous::{Client, transport::Socket},
    context,
};

/// Where the test kernels are loaded and entered.
const LOAD: u64 = 16 << 20;
/// Nobody's.
const UID: u32 = 64_999;
const LIMIT: Duration = Duration::from_secs(60);

/// `mov dx, 0x3f8`, then each letter.
fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for letter in text.bytes() {
        code.extend([0xb0, letter, 0xee]);
    }
    code
}

/// `mov al, 0xfe; out 0x64, al`
const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];
/// `pause; jmp`
const FOREVER: [u8; 4] = [0xf3, 0x90, 0xeb, 0xfc];
/// `pshufb xmm0, xmm1`, which nobody emulates; on hardware `ud2` behind it is a triple fault.
const STRANGE: [u8; 7] = [0x66, 0x0f, 0x38, 0x00, 0xc1, 0x0f, 0x0b];

fn elf(code: &[u8]) -> File {
    let mut bytes = vec![0; 120];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[24..32].copy_from_slice(&LOAD.to_le_bytes());
    bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
    bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
    bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
    bytes[64..68].copy_from_slice(&1u32.to_le_bytes());
    bytes[72..80].copy_from_slice(&120u64.to_le_bytes());
    bytes[88..96].copy_from_slice(&LOAD.to_le_bytes());
    let length = code.len() as u64;
    bytes[96..104].copy_from_slice(&length.to_le_bytes());
    bytes[104..112].copy_from_slice(&length.to_le_bytes());
    bytes.extend(code);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

struct Monitor {
    child: Child,
    control: MonitorClient,
    console: UnixStream,
    lifeline: Option<PipeWriter>,
    _runtime: tokio::runtime::Runtime,
}

fn start(code: &[u8], cpus: u32) -> Option<Monitor> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let kvm = match kvm {
        Ok(kvm) if rustix::process::geteuid().is_root() => kvm,
        other => {
            eprintln!(
                "not tested: root: {}, {other:?}",
                rustix::process::geteuid().is_root()
            );
            return None;
        }
    };
    let image = tempfile::tempfile().unwrap();
    image.set_len(1 << 20).unwrap();
    let (console, console_theirs) = UnixStream::pair().unwrap();
    let (control, control_theirs) = UnixStream::pair().unwrap();
    let (theirs, lifeline): (PipeReader, PipeWriter) = std::io::pipe().unwrap();
    let config = MonitorConfig {
        name: "test".into(),
        cpus: CpuConfig {
            boot: cpus,
            max: cpus,
        },
        memory: MemoryConfig {
            size_mib: 64,
            huge_pages: false,
        },
        command_line: vec!["quiet".into()],
        emulated_supervisor: true,
        fs: None,
        vsock: None,
        uid: UID,
        gid: UID,
        descriptors: MonitorDescriptors {
            kvm: 3,
            kernel: 4,
            image: 5,
            fs: None,
            vsock: None,
            console: 6,
            control: 7,
            lifeline: 8,
        },
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_isopod-vmm"));
    let descriptors: [OwnedFd; 6] = [
        kvm.into(),
        elf(code).into(),
        image.into(),
        console_theirs.into(),
        control_theirs.into(),
        theirs.into(),
    ];
    let mappings = (3..)
        .zip(descriptors)
        .map(|(child_fd, parent_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
    command.fd_mappings(mappings.collect()).unwrap();
    let mut child = command
        .env_clear()
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(command);
    let json = serde_json::to_vec(&config).unwrap();
    child.stdin.take().unwrap().write_all(&json).unwrap();
    console.set_read_timeout(Some(LIMIT)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    control.set_nonblocking(true).unwrap();
    let control = runtime.block_on(async {
        let socket = tokio::net::UnixStream::from_std(control).unwrap();
        MonitorClient::new(Client::new(Socket::new(socket)))
    });
    Some(Monitor {
        child,
        control,
        console,
        lifeline: Some(lifeline),
        _runtime: runtime,
    })
}

macro_rules! ask {
    ($monitor:expr, $call:ident) => {{
        let context = context::with_duration(LIMIT);
        let request = Empty::new();
        let call = $monitor.control.$call(context, &request);
        $monitor._runtime.block_on(call)
    }};
}

impl Monitor {
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            assert_eq!(
                self.console.read(&mut byte).unwrap(),
                1,
                "{}",
                self.errors()
            );
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    fn errors(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        let _ = stderr.read_to_string(&mut text);
        text
    }

    fn ends(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).unwrap()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_guest_boots_speaks_and_resets() {
    let code = [print("hello\n"), RESET.to_vec()].concat();
    let Some(mut monitor) = start(&code, 2) else {
        return;
    };
    let boot = ask!(monitor, boot).unwrap();
    assert!(boot.since_start_us > 0 && boot.cpu_us > 0);
    assert_eq!(monitor.line(), "hello\n");
    assert_eq!(monitor.ends().code(), Some(0), "{}", monitor.errors());
}

#[test]
fn nothing_runs_before_it_is_asked_for_and_nothing_boots_twice() {
    let code = [print("up\n"), FOREVER.to_vec()].concat();
    let Some(mut monitor) = start(&code, 1) else {
        return;
    };
    assert!(ask!(monitor, pause).is_err(), "it has not booted");
    assert_eq!(ask!(monitor, metrics).unwrap().vcpus[0].ports, 0);
    ask!(monitor, boot).unwrap();
    assert!(ask!(monitor, boot).is_err());
    assert_eq!(monitor.line(), "up\n");

    for _ in 0..5 {
        ask!(monitor, pause).unwrap();
        let metrics = ask!(monitor, metrics).unwrap();
        assert_eq!(metrics.vcpus[0].ports, 3);
        let names: Vec<_> = metrics.devices.iter().map(|d| d.name.clone()).collect();
        assert_eq!(names, ["blk-root", "rng"]);
        ask!(monitor, resume).unwrap();
    }
    ask!(monitor, shut_down).unwrap();
    assert_eq!(monitor.ends().code(), Some(0));
}

#[test]
fn it_ends_with_its_owner() {
    let Some(mut monitor) = start(&FOREVER, 1) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    monitor.lifeline = None;
    assert_eq!(monitor.ends().code(), Some(0));
}

#[test]
fn a_guest_that_cannot_go_on_is_told() {
    let Some(mut monitor) = start(&STRANGE, 1) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    let status = monitor.ends();
    assert_eq!(status.signal(), None, "no filter was broken");
    let told = monitor.errors();
    match status.code() {
        // Hardware: the triple fault.
        Some(0) => {}
        Some(1) => assert!(told.contains("Pshufb"), "{told}"),
        other => panic!("{other:?}: {told}"),
    }
}

#[test]
fn the_walls_stand_before_the_guest_runs() {
    let code = [print("up\n"), FOREVER.to_vec()].concat();
    let Some(mut monitor) = start(&code, 2) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    monitor.line();
    let status = monitor.proc("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let id = UID.to_string();
    assert_eq!(field("Uid:"), [&id, &id, &id, &id].map(String::clone));
    assert_eq!(field("Gid:"), [&id, &id, &id, &id].map(String::clone));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(
            of(&monitor.child.id().to_string()),
            of("self"),
            "{namespace}"
        );
    }
    // An empty root that cannot be written.
    let root = format!("/proc/{}/root", monitor.child.id());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    assert!(File::create(Path::new(&root).join("file")).is_err());
    let limits = monitor.proc("limits");
    assert!(
        limits
            .lines()
            .any(|l| l.starts_with("Max core file size        0"))
    );

    // Every thread has a filter of its own on top.
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", monitor.child.id())).unwrap() {
        let path = thread.unwrap().path();
        let status = fs::read_to_string(path.join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        names.push(
            fs::read_to_string(path.join("comm"))
                .unwrap()
                .trim()
                .to_owned(),
        );
    }
    // KVM's own, in the kernel: it recovers large pages.
    names.retain(|name| !name.starts_with("kvm-"));
    names.sort();
    assert_eq!(
        names,
        [
            "blk-root",
            "isopod-vmm",
            "lifeline",
            "rng",
            "vcpu-0",
            "vcpu-1"
        ]
    );

    // What it was given and nothing of the caller's.
    let open = fs::read_dir(format!("/proc/{}/fd", monitor.child.id())).unwrap();
    let targets: Vec<_> = open
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|path| path.display().to_string())
        .collect();
    let paths: Vec<_> = targets
        .iter()
        .filter(|t| t.starts_with('/') && !t.contains("memfd:"))
        .filter(|t| *t != "/dev/kvm" && !t.contains("(deleted)") && *t != "/dev/null")
        .collect();
    assert!(paths.is_empty(), "{paths:?}");
    assert!(monitor.console.as_raw_fd() > 2);
}
