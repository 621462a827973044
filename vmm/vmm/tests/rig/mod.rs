//! A monitor as a process, and kernels of a few instructions for it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod acts;
pub mod code;
pub mod crowd;

use std::{
    fs::{self, File},
    io::{PipeReader, PipeWriter, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};
use isopod_config::{
    CpuConfig, MonitorConfig, ProtocolConfig, RootConfig, SlotsConfig, SnapshotDescriptors,
    StateDescriptors,
};
use isopod_control::monitor_ttrpc::MonitorClient;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use ttrpc::asynchronous::{Client, transport::Socket};

/// Where the test kernels are loaded and entered.
pub const LOAD: u64 = 16 << 20;
/// Nobody's.
pub const UID: u32 = 64_999;
pub const LIMIT: Duration = Duration::from_secs(60);

/// `mov dx, 0x3f8`, then each letter.
pub fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for letter in text.bytes() {
        code.extend([0xb0, letter, 0xee]);
    }
    code
}

/// `mov al, 0xfe; out 0x64, al`
pub const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];
/// `pause; jmp`
pub const FOREVER: [u8; 4] = [0xf3, 0x90, 0xeb, 0xfc];
/// `pshufb xmm0, xmm1`, which nobody emulates; on hardware `ud2` behind it is a triple fault.
pub const STRANGE: [u8; 7] = [0x66, 0x0f, 0x38, 0x00, 0xc1, 0x0f, 0x0b];

/// A kernel that is entered by the 64-bit boot protocol.
pub fn elf(code: &[u8]) -> File {
    file(&[(1, LOAD, code)])
}

/// One that is entered by PVH, too (Xen, docs/misc/pvh.pandoc).
pub fn elf_with_pvh(code: &[u8]) -> File {
    let note = [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD as u32];
    let note: Vec<u8> = note.into_iter().flat_map(u32::to_le_bytes).collect();
    file(&[(1, LOAD, code), (4, 0, &note)])
}

/// Of segments: their types, where they are loaded, and what they hold.
fn file(segments: &[(u32, u64, &[u8])]) -> File {
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[24..32].copy_from_slice(&LOAD.to_le_bytes());
    bytes[32..40].copy_from_slice(&HEADER.to_le_bytes());
    bytes[54..56].copy_from_slice(&(SEGMENT as u16).to_le_bytes());
    bytes[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
    let mut offset = HEADER + SEGMENT * segments.len() as u64;
    for (kind, address, content) in segments {
        let length = content.len() as u64;
        let words = [offset, *address, *address, length, length, 4];
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(words.into_iter().flat_map(u64::to_le_bytes));
        offset += length;
    }
    for (_, _, content) in segments {
        bytes.extend(*content);
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

pub struct Monitor {
    pub child: Child,
    pub control: MonitorClient,
    pub console: UnixStream,
    pub lifeline: Option<PipeWriter>,
    /// Descriptors on their way.
    pub parcels: OwnedFd,
    pub runtime: tokio::runtime::Runtime,
}

/// Files that a machine is saved to and restored from.
pub struct Files {
    pub state: File,
    pub memory: File,
}

impl Files {
    pub fn new() -> Self {
        Self {
            state: tempfile::tempfile().unwrap(),
            memory: tempfile::tempfile().unwrap(),
        }
    }

    fn descriptors(&self) -> [OwnedFd; 2] {
        [&self.state, &self.memory].map(|file| file.try_clone().unwrap().into())
    }
}

/// What a monitor is started with.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    pub code: &'a [u8],
    pub cpus: u32,
    /// Present, beside those that may run.
    pub spare_cpus: u32,
    pub memory_mib: u64,
    pub save: Option<&'a Files>,
    pub restore: Option<&'a Files>,
    /// Whether it is entered by PVH.
    pub pvh: bool,
    /// None but those that every machine has, if there is none.
    pub slots: Option<&'a SlotsConfig>,
}

pub fn start(code: &[u8], cpus: u32) -> Option<Monitor> {
    start_with(Wanted {
        code,
        cpus,
        memory_mib: 64,
        ..Wanted::default()
    })
}

/// `None`, with the reason printed: this machine cannot run it.
pub fn start_with(wanted: Wanted<'_>) -> Option<Monitor> {
    let Wanted {
        code,
        cpus,
        spare_cpus,
        memory_mib,
        save,
        restore,
        pvh,
        slots,
    } = wanted;
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
    let mut config = MonitorConfig::bare("test", memory_mib, UID);
    config.cpus = CpuConfig {
        boot: cpus,
        max: cpus + spare_cpus,
    };
    config.root = RootConfig::Pmem;
    let mut kernel = elf(code);
    if pvh {
        config.protocol = ProtocolConfig::Pvh;
        kernel = elf_with_pvh(code);
    }
    config.slots = slots.cloned().unwrap_or_default();
    config.descriptors.snapshot = SnapshotDescriptors {
        restore: restore.map(|_| StateDescriptors {
            state: 9,
            memory: 10,
        }),
        save: save.map(|_| StateDescriptors {
            state: 11,
            memory: 12,
        }),
    };
    config.descriptors.parcels = Some(13);
    let mut command = Command::new(env!("CARGO_BIN_EXE_isopod-vmm"));
    let descriptors: [OwnedFd; 6] = [
        kvm.into(),
        kernel.into(),
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
    let files = [(9, restore), (11, save)];
    let files = files.into_iter().flat_map(|(first, files)| {
        let both = files.map(Files::descriptors);
        (first..).zip(both.into_iter().flatten())
    });
    let (parcels, parcels_theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mappings = mappings.chain([FdMapping {
        parent_fd: parcels_theirs,
        child_fd: 13,
    }]);
    let mappings = mappings.chain(files.map(|(child_fd, parent_fd)| FdMapping {
        parent_fd,
        child_fd,
    }));
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
        parcels,
        runtime,
    })
}

macro_rules! ask {
    ($monitor:expr, $call:ident) => {{ ask!($monitor, $call, isopod_control::monitor::Empty::new()) }};
    ($monitor:expr, $call:ident, $request:expr) => {{
        let context = ttrpc::context::with_duration($crate::rig::LIMIT);
        let request = $request;
        let call = $monitor.control.$call(context, &request);
        $monitor.runtime.block_on(call)
    }};
}

pub(crate) use ask;

impl Monitor {
    pub fn line(&mut self) -> String {
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

    pub fn errors(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        let _ = stderr.read_to_string(&mut text);
        text
    }

    pub fn ends(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn proc(&self, file: &str) -> String {
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
