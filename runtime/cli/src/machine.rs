//! This machine, as far as pods care: plain data, so that the checks on it are pure.

use std::path::PathBuf;

use isopod_hypervisor::Hypervisor;
use isopod_sandbox::preflight::EngineReport;
use isopod_settings::Settings;

/// Everything that the checks look at.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The settings, and what they say; or why they could not be read.
    pub settings: Result<Settings, String>,
    /// The file that was read; none: there is none, and defaults hold.
    pub settings_file: Option<PathBuf>,
    /// "x86_64".
    pub architecture: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// Names of the capabilities that the shim needs and this user lacks.
    pub missing_capabilities: Vec<&'static str>,
    /// The hypervisor, or why there is none.
    pub hypervisor: Result<Hypervisor, String>,
    /// The engine that a pod would get, or why none.
    pub engine: Result<EngineReport, String>,
    /// QEMU.
    pub qemu: Program,
    /// The microvm firmware that QEMU loads.
    pub qemu_firmware: Option<PathBuf>,
    /// The guest kernel: whole, or why not.
    pub kernel: Result<(), String>,
    /// The guest image: whole, or why not.
    pub image: Result<(), String>,
    /// isopod-fs.
    pub file_server: Program,
    /// isopod-vmm.
    pub monitor: Program,
    /// isopod-jail.
    pub jail: Program,
    /// containerd.
    pub containerd: Program,
    /// The shim, in containerd's PATH.
    pub shim: Program,
    /// What is mounted at /sys/fs/cgroup.
    pub cgroups: Cgroups,
    /// Kinds of namespaces that the kernel lacks.
    pub missing_namespaces: Vec<&'static str>,
    /// Whether the kernel filters system calls.
    pub seccomp: bool,
    /// Landlock's ABI; 0: none.
    pub landlock_abi: i32,
    /// Whether the kernel has overlayfs (or loads it).
    pub overlayfs: bool,
    /// Available memory in MiB.
    pub available_mib: u64,
    /// Free 2 MiB pages.
    pub huge_pages: u64,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where it is, or should be.
    pub path: PathBuf,
    /// What it answers to `--version`, or why it does not.
    pub version: Result<String, String>,
}

/// What is mounted at /sys/fs/cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// The unified hierarchy.
    V2,
    /// Hierarchies per controller.
    V1,
    /// Nothing.
    None,
}
