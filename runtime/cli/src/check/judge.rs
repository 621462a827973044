//! The checks: pure functions of a [`Machine`].

use isopod_hypervisor::Supervisor;
use isopod_settings::{Accelerator, Settings};

use super::{Check, Engine, Report, Status};
use crate::machine::{Cgroups, Machine, Program};

/// Linux has what the file server and the jail build on since then (openat2 is older, landlock's
/// signal and socket scopes are used where they exist).
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// vhost-user devices on the microvm machine were proven with this QEMU.
const OLDEST_QEMU: (u32, u32) = (7, 2);
/// The shim, QEMU and the file server of one pod, beside the guest's memory.
const OVERHEAD_MIB: u64 = 128;
const INSTALL: &str = "`make install` in isopod's source installs it";

/// All checks, in the order in which they should be mended.
pub fn judge(machine: &Machine) -> Report {
    let engine = engine(machine);
    let mut checks = vec![
        settings(machine),
        privileges(machine),
        host_kernel(machine),
        kvm(machine, engine.as_ref()),
        engine_check(machine, engine.as_ref()),
    ];
    if engine.as_ref().is_none_or(|engine| engine.name == "qemu") {
        checks.extend([qemu(machine), qemu_firmware(machine)]);
    }
    checks.extend([
        artifact("guest kernel", machine, &machine.kernel, |s| {
            &s.paths.kernel
        }),
        artifact("guest image", machine, &machine.image, |s| &s.paths.image),
        program("isopod-fs", &machine.file_server, INSTALL),
        program("isopod-vmm", &machine.monitor, INSTALL),
        program("isopod-jail", &machine.jail, INSTALL),
        containerd(machine),
        shim(machine),
        cgroups(machine),
        namespaces(machine),
        seccomp(machine),
        landlock(machine),
        overlayfs(machine),
        memory(machine),
    ]);
    checks.extend(huge_pages(machine));
    if let Some(isolation) = engine.as_ref().and_then(isolation) {
        checks.push(isolation);
    }
    Report {
        can_run_pods: checks.iter().all(|check| check.status != Status::Fail),
        engine,
        checks,
    }
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check {
        name,
        status: Status::Ok,
        found: found.into(),
        remedy: String::new(),
    }
}

fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        name,
        status: Status::Warn,
        found: found.into(),
        remedy: remedy.into(),
    }
}

fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        status: Status::Fail,
        ..warn(name, found, remedy)
    }
}

fn engine(machine: &Machine) -> Option<Engine> {
    let settings = machine.settings.as_ref().ok()?;
    let report = machine.engine.as_ref().ok()?;
    let software = report.name == "qemu" && settings.qemu.accelerator == Accelerator::Tcg;
    Some(Engine {
        name: report.name,
        cpu: if software { "software" } else { "kvm" },
        why: report.why.clone(),
    })
}

fn settings(machine: &Machine) -> Check {
    let file = machine.settings_file.as_ref();
    match (&machine.settings, file) {
        (Ok(_), Some(file)) => ok("settings", file.display().to_string()),
        (Ok(_), None) => ok("settings", "no file: defaults"),
        (Err(error), _) => fail(
            "settings",
            error,
            "mend the file; the default one, isopod.toml, documents every key",
        ),
    }
}

fn privileges(machine: &Machine) -> Check {
    let missing = &machine.missing_capabilities;
    if missing.is_empty() {
        return ok("privileges", "all that the shim needs");
    }
    fail(
        "privileges",
        format!("lacking {}", missing.join(", ")),
        "run as root, as containerd does; in a container, with --privileged",
    )
}

fn host_kernel(machine: &Machine) -> Check {
    const NAME: &str = "host kernel";
    let found = format!("Linux {} {}", machine.kernel_release, machine.architecture);
    if machine.architecture != "x86_64" {
        return fail(NAME, found, "isopod runs on x86_64 only");
    }
    match version(&machine.kernel_release) {
        Some(version) if version >= OLDEST_KERNEL => ok(NAME, found),
        _ => fail(NAME, found, "Linux 5.15 or later is needed"),
    }
}

/// A missing KVM matters only to those who use it.
fn kvm(machine: &Machine, engine: Option<&Engine>) -> Check {
    let needed = engine.is_some_and(|engine| engine.cpu == "kvm");
    let judge = if needed { fail } else { warn };
    let hypervisor = match &machine.hypervisor {
        Ok(hypervisor) => hypervisor,
        Err(error) => {
            let remedy = "for speed and isolation by the CPU: a machine with VMX or SVM, turned on in \
                          its firmware, and the module kvm_intel or kvm_amd";
            return judge("kvm", error.clone(), remedy.to_owned());
        }
    };
    let speed = hypervisor.instructions_per_second;
    match hypervisor.supervisor {
        Supervisor::Hardware => {
            let speed = speed / 1e6;
            ok(
                "kvm",
                format!("supervisor mode in hardware ({speed:.0} M instructions/s)"),
            )
        }
        Supervisor::Emulated => warn(
            "kvm",
            format!(
                "supervisor mode is emulated ({:.1} M instructions/s): guest kernels crawl",
                speed / 1e6
            ),
            if needed {
                "set qemu.accelerator = \"tcg\": QEMU's software CPU is faster here"
            } else {
                "nothing to do: the engine below does not use it"
            },
        ),
    }
}

fn engine_check(machine: &Machine, engine: Option<&Engine>) -> Check {
    match (engine, &machine.engine) {
        (Some(engine), _) => ok("engine", format!("{}: {}", engine.name, engine.why)),
        (None, Err(error)) => fail("engine", error, "choose another engine in the settings"),
        (None, Ok(_)) => fail("engine", "unknown", "mend the settings first"),
    }
}

fn qemu(machine: &Machine) -> Check {
    let remedy = "apt-get install qemu-system-x86, or set paths.qemu";
    let found = program("qemu", &machine.qemu, remedy);
    let Ok(text) = &machine.qemu.version else {
        return found;
    };
    match version(text) {
        Some(version) if version < OLDEST_QEMU => {
            fail("qemu", found.found, "QEMU 7.2 or later is needed")
        }
        _ => found,
    }
}

fn qemu_firmware(machine: &Machine) -> Check {
    match &machine.qemu_firmware {
        Some(path) => ok("qemu firmware", path.display().to_string()),
        None => fail(
            "qemu firmware",
            "bios-microvm.bin is missing",
            "apt-get install qemu-system-data seabios",
        ),
    }
}

fn artifact(
    name: &'static str,
    machine: &Machine,
    found: &Result<(), String>,
    path: impl Fn(&Settings) -> &std::path::PathBuf,
) -> Check {
    match (found, &machine.settings) {
        (Ok(()), Ok(settings)) => ok(name, path(settings).display().to_string()),
        (Ok(()), Err(_)) => ok(name, "whole"),
        (Err(error), _) => fail(name, error, INSTALL),
    }
}

fn program(name: &'static str, program: &Program, remedy: &str) -> Check {
    let path = program.path.display();
    match &program.version {
        Ok(version) => ok(name, format!("{path} ({version})")),
        Err(error) => fail(name, format!("{path}: {error}"), remedy),
    }
}

fn containerd(machine: &Machine) -> Check {
    const NAME: &str = "containerd";
    let found = program(NAME, &machine.containerd, "apt-get install containerd");
    let Ok(text) = &machine.containerd.version else {
        return found;
    };
    match version(text) {
        Some(version) if version < (1, 6) => {
            fail(NAME, found.found, "containerd 1.6 or later is needed")
        }
        _ => found,
    }
}

fn shim(machine: &Machine) -> Check {
    const NAME: &str = "containerd-shim-isopod-v2";
    let remedy = "put it into a directory of containerd's PATH; `make install` puts it into \
                  /usr/local/bin";
    let found = program(NAME, &machine.shim, remedy);
    match &machine.shim.version {
        Ok(version) if !version.contains(env!("CARGO_PKG_VERSION")) => warn(
            NAME,
            found.found,
            "its version is not this program's: install both from one build",
        ),
        _ => found,
    }
}

fn cgroups(machine: &Machine) -> Check {
    match machine.cgroups {
        Cgroups::V2 => ok("cgroups", "v2"),
        Cgroups::V1 => ok("cgroups", "v1 on the host; guests have v2"),
        Cgroups::None => warn(
            "cgroups",
            "/sys/fs/cgroup is not mounted",
            "mount cgroup2 there: without it nothing bounds a pod's processes on the host",
        ),
    }
}

fn namespaces(machine: &Machine) -> Check {
    let missing = &machine.missing_namespaces;
    if missing.is_empty() {
        return ok("namespaces", "mount, pid, network, ipc, uts, cgroup");
    }
    fail(
        "namespaces",
        format!("the kernel lacks {}", missing.join(", ")),
        "the jail needs them: run a kernel with CONFIG_NAMESPACES and all kinds below it",
    )
}

fn seccomp(machine: &Machine) -> Check {
    if machine.seccomp {
        return ok("seccomp", "filters");
    }
    fail(
        "seccomp",
        "the kernel has no seccomp filters",
        "the jail needs them: run a kernel with CONFIG_SECCOMP_FILTER",
    )
}

fn landlock(machine: &Machine) -> Check {
    match machine.landlock_abi {
        abi @ 1.. => ok("landlock", format!("ABI {abi}")),
        _ => warn(
            "landlock",
            "not available",
            "the jail does without one of its walls: enable it (CONFIG_SECURITY_LANDLOCK, lsm=landlock,...)",
        ),
    }
}

fn overlayfs(machine: &Machine) -> Check {
    if machine.overlayfs {
        return ok("overlayfs", "available");
    }
    warn(
        "overlayfs",
        "not available",
        "containerd's overlayfs snapshotter needs it; the native one copies every image",
    )
}

fn memory(machine: &Machine) -> Check {
    const NAME: &str = "memory";
    let available = machine.available_mib;
    let guest = machine.settings.as_ref().map_or(0, |s| s.vm.memory_mib);
    // A guest touches what it uses: an overcommitted machine works until it does not.
    let needed = guest.saturating_add(OVERHEAD_MIB);
    let found = format!("{available} MiB available, a pod takes up to {needed} MiB and its limits");
    if available >= needed {
        return ok(NAME, found);
    }
    warn(NAME, found, "free memory, or lower vm.memory_mib")
}

fn huge_pages(machine: &Machine) -> Option<Check> {
    const NAME: &str = "huge pages";
    let settings = machine.settings.as_ref().ok()?;
    if !settings.vm.huge_pages {
        return None;
    }
    let needed = settings.vm.memory_mib.div_ceil(2);
    let found = format!("{} free, a pod takes {needed}", machine.huge_pages);
    Some(if machine.huge_pages >= needed {
        ok(NAME, found)
    } else {
        let remedy = "raise /proc/sys/vm/nr_hugepages, or unset vm.huge_pages";
        fail(NAME, found, remedy)
    })
}

fn isolation(engine: &Engine) -> Option<Check> {
    (engine.cpu == "software").then(|| {
        warn(
            "isolation",
            "QEMU's software CPU executes guests; QEMU's project does not promise isolation for it",
            "QEMU is jailed here (namespaces, seccomp, landlock, no privileges); for isolation by the \
             CPU use a machine with VMX or SVM",
        )
    })
}

/// The first "A.B" in a text.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .find_map(|word| {
            let mut numbers = word.split('.');
            let major = numbers.next()?.parse().ok()?;
            let minor = numbers.next()?.parse().ok()?;
            Some((major, minor))
        })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
