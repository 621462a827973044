//! Bounds of values. Each message says what would be right.

use std::path::Path;

use crate::{Accelerator, EngineChoice, Settings};

/// A value out of bounds.
pub(crate) struct Violation {
    pub table: &'static str,
    pub key: &'static str,
    pub message: String,
}

/// The guest kernel with nothing else in it needs about 40 MiB under QEMU.
const MIN_MEMORY_MIB: u64 = 64;
/// 1 TiB: the machine's physical address space under QEMU's software CPU ends at 1 TiB (40 bits).
const MAX_MEMORY_MIB: u64 = 1 << 20;
/// The guest kernel's CONFIG_NR_CPUS and QEMU's microvm limit are not below this.
const MAX_CPUS: u32 = 64;
/// Parameters that decide what boots, from where, and where its messages go: they are isopod's.
const OWN_PARAMETERS: &[&str] = &[
    "root",
    "rootfstype",
    "init",
    "rdinit",
    "initrd",
    "ro",
    "rw",
    "panic",
    "reboot",
    "earlyprintk",
    "console",
    "virtio_mmio.device",
    "memmap",
    "mem",
    "maxcpus",
    "nr_cpus",
    "possible_cpus",
    "nosmp",
];

/// The first violation, in the order of the file.
pub(crate) fn check(settings: &Settings) -> Result<(), Violation> {
    let Settings {
        engine,
        log_level: _,
        paths,
        vm,
        qemu,
        fs,
        jail,
        timeouts,
        annotations: _,
        debug: _,
    } = settings;

    absolute("kernel", &paths.kernel)?;
    absolute("image", &paths.image)?;
    absolute("file_server", &paths.file_server)?;
    absolute("monitor", &paths.monitor)?;
    absolute("jail", &paths.jail)?;
    absolute("qemu", &paths.qemu)?;
    absolute("state", &paths.state)?;

    between(
        "vm",
        "memory_mib",
        vm.memory_mib,
        MIN_MEMORY_MIB,
        MAX_MEMORY_MIB,
    )?;
    between(
        "vm",
        "max_memory_mib",
        vm.max_memory_mib,
        vm.memory_mib,
        MAX_MEMORY_MIB,
    )?;
    between("vm", "cpus", vm.cpus.into(), 1, MAX_CPUS.into())?;
    between(
        "vm",
        "max_cpus",
        vm.max_cpus.into(),
        vm.cpus.into(),
        MAX_CPUS.into(),
    )?;
    between(
        "vm",
        "spare_memory_mib",
        vm.spare_memory_mib,
        0,
        MAX_MEMORY_MIB,
    )?;
    between("vm", "spare_cpus", vm.spare_cpus.into(), 0, MAX_CPUS.into())?;
    for parameter in &vm.kernel_parameters {
        kernel_parameter(parameter)?;
    }

    if *engine == EngineChoice::Kvm && qemu.accelerator == Accelerator::Kvm {
        return violation(
            "qemu",
            "accelerator",
            "engine = \"kvm\" does not run QEMU; set engine = \"qemu\"".into(),
        );
    }
    between("fs", "request_queues", fs.request_queues.into(), 1, 16)?;
    between("fs", "queue_size", fs.queue_size.into(), 16, 1024)?;
    if !fs.queue_size.is_power_of_two() {
        return violation(
            "fs",
            "queue_size",
            format!("{} is not a power of two", fs.queue_size),
        );
    }
    // The last id is "no change" to chown(2) and setresuid(2).
    between("jail", "uid", jail.uid.into(), 1, u64::from(u32::MAX) - 1)?;
    between("jail", "gid", jail.gid.into(), 1, u64::from(u32::MAX) - 1)?;
    between("timeouts", "boot", timeouts.boot.into(), 1, 3600)?;
    between("timeouts", "request", timeouts.request.into(), 1, 3600)?;
    between("timeouts", "shutdown", timeouts.shutdown.into(), 1, 600)
}

fn violation(table: &'static str, key: &'static str, message: String) -> Result<(), Violation> {
    Err(Violation {
        table,
        key,
        message,
    })
}

fn between(
    table: &'static str,
    key: &'static str,
    value: u64,
    low: u64,
    high: u64,
) -> Result<(), Violation> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    violation(
        table,
        key,
        format!("{value} is not between {low} and {high}"),
    )
}

fn absolute(key: &'static str, path: &Path) -> Result<(), Violation> {
    if path.is_absolute() {
        return Ok(());
    }
    violation(
        "paths",
        key,
        format!("`{}` is not an absolute path", path.display()),
    )
}

fn kernel_parameter(parameter: &str) -> Result<(), Violation> {
    let key = "kernel_parameters";
    let plain = !parameter.is_empty()
        && parameter.len() <= 256
        && parameter
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'"');
    if !plain || parameter == "--" {
        return violation(
            "vm",
            key,
            format!(
                "`{parameter}` is not one parameter of printable ASCII without spaces and quotes"
            ),
        );
    }
    // The kernel takes `-` and `_` in names for the same.
    let name = parameter
        .split('=')
        .next()
        .unwrap_or(parameter)
        .replace('-', "_");
    if OWN_PARAMETERS.contains(&name.as_str()) {
        return violation("vm", key, format!("`{name}` is set by isopod"));
    }
    Ok(())
}
