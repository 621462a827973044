//! The values and their defaults. `isopod.toml` beside this crate's manifest documents them.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::Annotation;

/// Everything an operator can configure.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
pub struct Settings {
    /// What runs the virtual machine.
    pub engine: EngineChoice,
    /// What the shim logs.
    pub log_level: LogLevel,
    /// Where things are.
    pub paths: Paths,
    /// How large virtual machines are.
    pub vm: Vm,
    /// The `qemu` engine.
    pub qemu: Qemu,
    /// The shared file system.
    pub fs: Fs,
    /// Whom the virtual machine's process runs as.
    pub jail: Jail,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What a pod may choose for itself.
    pub annotations: Annotations,
    /// Ways to look into a running pod.
    pub debug: Debug,
}

/// What runs the virtual machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// `Kvm` where the CPU virtualizes and that engine is there, else `Qemu`.
    #[default]
    Auto,
    /// isopod's own monitor.
    Kvm,
    /// Debian's QEMU.
    Qemu,
}

/// What is logged, from least to most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures.
    Error,
    /// Also what may become one.
    Warn,
    /// Also what happened to a pod.
    #[default]
    Info,
    /// Also every step.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The name as the configuration spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Where things are. All absolute.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// The guest kernel: an uncompressed ELF `vmlinux`.
    pub kernel: PathBuf,
    /// The guest image: EROFS.
    pub image: PathBuf,
    /// `isopod-fs`.
    pub file_server: PathBuf,
    /// `isopod-vmm`.
    pub monitor: PathBuf,
    /// `isopod-jail`.
    pub jail: PathBuf,
    /// QEMU's system emulator.
    pub qemu: PathBuf,
    /// Where pods keep sockets and mounts.
    pub state: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            kernel: "/usr/local/share/isopod/vmlinux".into(),
            image: "/usr/local/share/isopod/guest.erofs".into(),
            file_server: "/usr/local/libexec/isopod/isopod-fs".into(),
            monitor: "/usr/local/libexec/isopod/isopod-vmm".into(),
            jail: "/usr/local/libexec/isopod/isopod-jail".into(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            state: "/run/isopod".into(),
        }
    }
}

/// How large virtual machines are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vm {
    /// MiB, for the guest kernel and containers without a limit; a pod's limit is added.
    pub memory_mib: u64,
    /// MiB that no pod exceeds.
    pub max_memory_mib: u64,
    /// Virtual CPUs of a pod without a CPU limit.
    pub cpus: u32,
    /// Virtual CPUs that no pod exceeds.
    pub max_cpus: u32,
    /// MiB by which a pod can grow while it runs.
    pub spare_memory_mib: u64,
    /// Virtual CPUs by which a pod can grow while it runs.
    pub spare_cpus: u32,
    /// Back guest memory with 2 MiB huge pages.
    pub huge_pages: bool,
    /// Appended to the guest kernel's command line.
    pub kernel_parameters: Vec<String>,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            memory_mib: 512,
            max_memory_mib: 65536,
            cpus: 1,
            max_cpus: 16,
            spare_memory_mib: 4096,
            spare_cpus: 3,
            huge_pages: false,
            kernel_parameters: Vec::new(),
        }
    }
}

/// The `qemu` engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Qemu {
    /// What executes guest code.
    pub accelerator: Accelerator,
}

/// What executes guest code under QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// QEMU's software CPU.
    #[default]
    Tcg,
    /// The host's KVM.
    Kvm,
}

/// The shared file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fs {
    /// Request queues, besides the high-priority queue.
    pub request_queues: u16,
    /// Descriptors per queue, a power of two.
    pub queue_size: u16,
}

impl Default for Fs {
    fn default() -> Self {
        Self {
            request_queues: 1,
            queue_size: 128,
        }
    }
}

/// Whom the virtual machine's process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jail {
    /// User id; not 0.
    pub uid: u32,
    /// Group id; not 0.
    pub gid: u32,
}

impl Default for Jail {
    fn default() -> Self {
        Self {
            uid: 64055,
            gid: 64055,
        }
    }
}

/// How long things may take, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From the start of the virtual machine until its agent serves.
    pub boot: u32,
    /// One request to the agent.
    pub request: u32,
    /// For the guest to end by itself before it is killed.
    pub shutdown: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            boot: 120,
            request: 60,
            shutdown: 5,
        }
    }
}

impl Timeouts {
    /// [`Self::boot`] as a duration.
    pub fn boot(&self) -> Duration {
        Duration::from_secs(self.boot.into())
    }
    /// [`Self::request`] as a duration.
    pub fn request(&self) -> Duration {
        Duration::from_secs(self.request.into())
    }
    /// [`Self::shutdown`] as a duration.
    pub fn shutdown(&self) -> Duration {
        Duration::from_secs(self.shutdown.into())
    }
}

/// What a pod may choose for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Annotations {
    /// Annotations that are honoured; none by default.
    pub allowed: Vec<Annotation>,
}

/// Ways to look into a running pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Debug {
    /// Guests answer `isopod debug`.
    pub console: bool,
}
