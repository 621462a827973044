//! Looks at this machine. Nothing is judged here, and nothing is changed.

use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use isopod_hypervisor::Hypervisor;
use isopod_sandbox::preflight;
use isopod_settings::{DEFAULT_PATH, Settings};
use landlock::{ABI, Access, AccessFs, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr};

use crate::{
    machine::{Cgroups, Machine, Program},
    processes,
};

/// A program that does not tell its version within this is not what it should be.
const VERSION_PATIENCE: Duration = Duration::from_secs(5);
/// Where containerd looks when nobody tells.
const DEFAULT_PATHS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// linux/capability.h: what mounting pods' filesystems, jailing and serving files as others takes.
const CAPABILITIES: &[(u32, &str)] = &[
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (21, "CAP_SYS_ADMIN"),
];
/// Names in /proc/self/ns, and in words.
const NAMESPACES: &[(&str, &str)] = &[
    ("mnt", "mount"),
    ("pid", "pid"),
    ("net", "network"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
];
/// Where Debian and others install it.
const FIRMWARE: &[&str] = &[
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/local/share/qemu/bios-microvm.bin",
];

/// Everything that the checks look at; `config` instead of the default settings file.
pub fn machine(config: Option<&Path>) -> Machine {
    let settings = Settings::load(config).map_err(|error| error.to_string());
    let paths = settings.clone().unwrap_or_default().paths;
    let default = Path::new(DEFAULT_PATH);
    let uname = rustix::system::uname();
    let search = containerd_path();
    Machine {
        settings_file: config
            .or(default.exists().then_some(default))
            .map(Path::to_owned),
        engine: settings.clone().and_then(|s| preflight::engine(&s)),
        architecture: uname.machine().to_string_lossy().into_owned(),
        kernel_release: uname.release().to_string_lossy().into_owned(),
        missing_capabilities: missing_capabilities(),
        hypervisor: Hypervisor::probe().map_err(|error| error.to_string()),
        qemu: program(paths.qemu),
        qemu_firmware: FIRMWARE.iter().map(PathBuf::from).find(|p| p.exists()),
        kernel: preflight::kernel(&paths.kernel),
        image: preflight::image(&paths.image),
        file_server: program(paths.file_server),
        monitor: program(paths.monitor),
        jail: program(paths.jail),
        containerd: in_path("containerd", &search),
        shim: in_path("containerd-shim-isopod-v2", &search),
        cgroups: cgroups(),
        missing_namespaces: NAMESPACES
            .iter()
            .filter(|(file, _)| !Path::new("/proc/self/ns").join(file).exists())
            .map(|(_, name)| *name)
            .collect(),
        seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        landlock_abi: landlock_abi(),
        overlayfs: overlayfs(&uname.release().to_string_lossy()),
        available_mib: meminfo("MemAvailable") / 1024,
        huge_pages: meminfo("HugePages_Free"),
        settings,
    }
}

fn missing_capabilities() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = effective_capabilities(&status);
    let missing = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0);
    missing.map(|(_, name)| *name).collect()
}

/// proc(5): `CapEff:` and a hexadecimal mask.
fn effective_capabilities(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// The PATH of the containerd that runs, else ours and the usual one.
fn containerd_path() -> Vec<PathBuf> {
    let of_containerd = processes::all()
        .into_iter()
        .find(|process| process.name == "containerd")
        .and_then(|process| process.variable("PATH"));
    let path = of_containerd.unwrap_or_else(|| {
        let ours = env::var("PATH").unwrap_or_default();
        format!("{ours}:{DEFAULT_PATHS}")
    });
    env::split_paths(&path).collect()
}

fn in_path(name: &str, search: &[PathBuf]) -> Program {
    let candidates = search.iter().map(|directory| directory.join(name));
    match candidates.into_iter().find(|path| path.is_file()) {
        Some(path) => program(path),
        None => Program {
            path: name.into(),
            version: Err("not found in containerd's PATH".to_owned()),
        },
    }
}

fn program(path: PathBuf) -> Program {
    let version = ask_version(&path);
    Program { path, version }
}

/// The first line that the program answers to `--version`.
fn ask_version(path: &Path) -> Result<String, String> {
    let mut child = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let deadline = Instant::now() + VERSION_PATIENCE;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if Instant::now() >= deadline => {
                // It may have ended in between: both calls may fail then, and need not succeed.
                let _ = child.kill();
                let _ = child.wait();
                return Err("does not answer --version".to_owned());
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    if !status.success() {
        return Err(format!("--version failed: {status}"));
    }
    let mut text = String::new();
    let output = child.stdout.take();
    // A page is more than any version; a pipe holds it, so the wait above cannot block on it.
    let read = output.map(|output| output.take(4096).read_to_string(&mut text));
    if !matches!(read, Some(Ok(_))) {
        return Err("answers --version with no text".to_owned());
    }
    match text.lines().next().map(str::trim) {
        None | Some("") => Err("answers --version with nothing".to_owned()),
        Some(line) => Ok(line.to_owned()),
    }
}

fn cgroups() -> Cgroups {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        Cgroups::V2
    } else if fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some()) {
        Cgroups::V1
    } else {
        Cgroups::None
    }
}

/// Landlock tells its ABI to those who use it: a thread that ends at once locks itself in.
fn landlock_abi() -> i32 {
    let probe = thread::spawn(|| {
        let status = Ruleset::default()
            .handle_access(AccessFs::from_all(ABI::V1))?
            .create()?
            .no_new_privs(true)
            .restrict_self()?
            .landlock;
        Ok::<_, landlock::RulesetError>(match status {
            LandlockStatus::Available {
                effective_abi,
                kernel_abi,
            } => kernel_abi.unwrap_or(effective_abi as i32),
            _ => 0,
        })
    });
    probe.join().ok().and_then(Result::ok).unwrap_or(0)
}

/// Built in, loaded, or a module that mount(2) will load.
fn overlayfs(release: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.split_whitespace().any(|word| word == "overlay")
        || fs::read_to_string(format!("/lib/modules/{release}/modules.dep"))
            .is_ok_and(|modules| modules.contains("/overlay.ko"))
}

fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo_value(&text, key)
}

/// proc(5): `Key:   number kB`.
fn meminfo_value(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| {
        let (found, rest) = line.split_once(':')?;
        (found == key).then(|| rest.split_whitespace().next())?
    });
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn proc_files() {
        let meminfo = "MemTotal:  9 kB\nMemAvailable:   2048 kB\nHugePages_Free:       3\n";
        assert_eq!(meminfo_value(meminfo, "MemAvailable"), 2048);
        assert_eq!(meminfo_value(meminfo, "HugePages_Free"), 3);
        assert_eq!(meminfo_value(meminfo, "Absent"), 0);
        assert_eq!(
            effective_capabilities("CapEff:\t0000000000200001\n"),
            1 << 21 | 1
        );
        assert_eq!(effective_capabilities("CapEff:\tx\n"), 0);
    }

    #[test]
    fn programs_are_found_and_asked() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        };
        script("good", "#!/bin/sh\necho good 1.2\necho more\n");
        script("bad", "#!/bin/sh\nexit 3\n");
        script("mute", "#!/bin/sh\n");
        let search = [PathBuf::from("/nonexistent"), directory.path().to_owned()];
        assert_eq!(in_path("good", &search).version, Ok("good 1.2".into()));
        let bad = in_path("bad", &search).version;
        assert!(bad.is_err_and(|error| error.contains("exit status: 3")));
        let mute = in_path("mute", &search).version;
        assert!(mute.is_err_and(|error| error.contains("nothing")));
        let absent = in_path("absent", &search).version;
        assert!(absent.is_err_and(|error| error.contains("PATH")));
    }
}
