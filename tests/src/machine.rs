//! What this machine has of what a case needs, and where the binaries under test are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::process;

/// Something that a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Need {
    /// Root, unshare(1), containerd, ctr, runc and a static busybox: what every case needs.
    Containers,
    /// The shim, `isopod-fs`, `isopod-jail`, the guest kernel, the guest image, and QEMU.
    Isopod,
    /// The `isopod` command.
    Cli,
    /// A containerd newer than the installed one.
    NewerContainerd,
    /// Debian's virtio-fs server, to compare with.
    Virtiofsd,
    /// `isopod-vmm` and an image whose agent tests its devices (`make selftest`).
    SelfTest,
    /// `/dev/kvm`, whoever runs a guest's kernel behind it.
    Kvm,
}

/// Paths of what is tested and of what tests it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Holds containerd-shim-isopod-v2, isopod, isopod-fs, isopod-jail (`ISOPOD_BIN_DIR`).
    pub bin_dir: PathBuf,
    /// The guest kernel (`ISOPOD_KERNEL`).
    pub kernel: PathBuf,
    /// The guest image (`ISOPOD_IMAGE`).
    pub image: PathBuf,
    /// A guest image whose agent tests its devices (`ISOPOD_SELFTEST_IMAGE`).
    pub selftest_image: PathBuf,
    /// The engine that the settings name (`ISOPOD_ENGINE`).
    pub engine: String,
    /// Holds containerd and ctr, when it is not the installed one (`CONTAINERD_BIN_DIR`).
    pub containerd_dir: Option<PathBuf>,
    /// Holds a newer containerd and ctr (`ISOPOD_NEWER_CONTAINERD`): `tests/newer-containerd`.
    pub newer_containerd_dir: PathBuf,
    /// The workspace's target directory.
    pub target_dir: PathBuf,
}

const SHIM: &str = "containerd-shim-isopod-v2";

impl Machine {
    /// Looks around.
    pub fn find() -> Self {
        let target_dir = target_dir();
        let bin_dir = env_path("ISOPOD_BIN_DIR").unwrap_or_else(|| {
            let made = target_dir.join("x86_64-unknown-linux-gnu/release");
            [made.clone(), target_dir.join("debug")]
                .into_iter()
                .find(|dir| dir.join(SHIM).exists())
                .unwrap_or(made)
        });
        let guest = target_dir.join("guest-artifacts");
        Self {
            bin_dir,
            kernel: env_path("ISOPOD_KERNEL").unwrap_or_else(|| guest.join("vmlinux")),
            image: env_path("ISOPOD_IMAGE").unwrap_or_else(|| guest.join("guest.erofs")),
            selftest_image: env_path("ISOPOD_SELFTEST_IMAGE")
                .unwrap_or_else(|| guest.join("selftest.erofs")),
            engine: env::var("ISOPOD_ENGINE").unwrap_or_else(|_| "auto".to_owned()),
            containerd_dir: env_path("CONTAINERD_BIN_DIR"),
            newer_containerd_dir: env_path("ISOPOD_NEWER_CONTAINERD")
                .unwrap_or_else(|| target_dir.join("newer-containerd")),
            target_dir,
        }
    }

    /// Why a need is not met here; `None` when it is.
    pub fn lacks(&self, need: Need) -> Option<String> {
        match need {
            Need::Containers => {
                if !nix::unistd::geteuid().is_root() {
                    return Some("needs root".to_owned());
                }
                if !Path::new(crate::image::BUSYBOX).exists() {
                    return Some(format!(
                        "needs {} (package busybox-static)",
                        crate::image::BUSYBOX
                    ));
                }
                [
                    "containerd",
                    "ctr",
                    "runc",
                    "unshare",
                    "ip",
                    "mkfs.ext4",
                    "setsid",
                ]
                .into_iter()
                .find(|name| self.program(name).is_none())
                .map(|name| format!("needs {name} in PATH"))
            }
            Need::Isopod => [SHIM, "isopod-fs", "isopod-vmm", "isopod-jail"]
                .map(|name| self.bin_dir.join(name))
                .into_iter()
                .chain([self.kernel.clone(), self.image.clone()])
                .find(|path| !path.exists())
                .map(|path| format!("{} is not built", path.display()))
                .or_else(|| {
                    let qemu = self.program("qemu-system-x86_64").is_none();
                    qemu.then(|| "needs qemu-system-x86_64 in PATH".to_owned())
                }),
            Need::SelfTest => {
                let path = &self.selftest_image;
                (!path.exists()).then(|| format!("{} is not built (make selftest)", path.display()))
            }
            Need::Cli => {
                let path = self.bin_dir.join("isopod");
                (!path.exists()).then(|| format!("{} is not built", path.display()))
            }
            Need::NewerContainerd => {
                let dir = self.newer_containerd_dir.display();
                let path = self.newer_containerd_dir.join("containerd");
                (!path.exists())
                    .then(|| format!("needs a containerd in {dir} (tests/newer-containerd {dir})"))
            }
            Need::Kvm => {
                let device = fs::File::options().read(true).write(true).open("/dev/kvm");
                device.err().map(|error| format!("needs /dev/kvm: {error}"))
            }
            Need::Virtiofsd => {
                let path = Path::new(VIRTIOFSD);
                (!path.exists()).then(|| format!("needs {VIRTIOFSD} (package qemu-system-common)"))
            }
        }
    }

    /// Whether the monitor finds that guests' kernels do not run on the processor itself: then, how many of
    /// their instructions this machine's KVM interprets in a second.
    ///
    /// # Errors
    /// The monitor cannot look.
    pub fn interprets_kernels(&self) -> Result<Option<f64>> {
        let mut probe = Command::new(self.bin_dir.join("isopod-vmm"));
        let limit = Duration::from_secs(60);
        let told = process::run(probe.arg("probe"), None, limit)?.ok()?.out();
        let told: Value = serde_json::from_str(&told).context("the monitor's probe")?;
        let speed = told["instructions_per_second"].as_f64();
        Ok(speed.filter(|_| told["emulated_supervisor"] == true))
    }

    /// Where a program is: containerd's own directory first, then `PATH`.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        self.containerd_dir
            .iter()
            .cloned()
            .chain(env::split_paths(&path))
            .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
    }

    /// `PATH` for containerd: the shim under test is found in it.
    pub fn path_variable(&self) -> String {
        let mut dirs: Vec<String> = Vec::new();
        dirs.extend(
            self.containerd_dir
                .iter()
                .map(|dir| dir.display().to_string()),
        );
        dirs.push(self.bin_dir.display().to_string());
        dirs.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        dirs.join(":")
    }
}

/// Debian's virtio-fs server in C.
pub const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

fn env_path(name: &str) -> Option<PathBuf> {
    let value = PathBuf::from(env::var_os(name).filter(|value| !value.is_empty())?);
    Some(std::path::absolute(&value).unwrap_or(value))
}

/// The target directory in which this program was built, or `CARGO_TARGET_DIR`, or `target`.
fn target_dir() -> PathBuf {
    if let Some(dir) = env_path("CARGO_TARGET_DIR") {
        return dir;
    }
    let tagged = env::current_exe().ok().and_then(|exe| {
        let found = exe
            .ancestors()
            .find(|dir| dir.join("CACHEDIR.TAG").exists());
        found.map(Path::to_path_buf)
    });
    tagged.unwrap_or_else(|| workspace().join("target"))
}

/// The checkout. cargo says where it runs from; what it said when it compiled may be another checkout
/// that shares the target directory, and is gone.
pub fn workspace() -> PathBuf {
    let package = env_path("CARGO_MANIFEST_DIR").filter(|dir| dir.ends_with("tests"));
    let package = package.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    package.parent().map_or(package.clone(), Path::to_path_buf)
}
