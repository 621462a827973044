//! The spec as the guest is to have it: what names something of the host is translated or removed.
//!
//! | field | in the guest |
//! |---|---|
//! | network namespace | removed: the pod's network is the machine's |
//! | ipc, uts, pid, mount, cgroup, user namespace without a path | kept |
//! | cgroupsPath | `/isopod/<id>`: the host's hierarchy does not exist there |
//! | ipc, uts, pid, user namespace with a path | joins the pod's first container |
//! | cpuset of resources | removed: it numbers the host's CPUs and memory nodes |
//! | AppArmor profile, SELinux labels | an engine's default ones are removed, others refused: see `labels` |
//! | hooks | those of the host are taken out: see `hooks` |
//! | devices of the host, intelRdt, netDevices | an error names them |

use std::path::PathBuf;

use isopod_protocol::paths;
use oci_spec::runtime::{
    Linux, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Spec,
};

use super::{PlanError, devices, labels};

/// Translates everything but the mounts. `first_pid` is the guest's pid of the pod's first
/// container's init, unless this is that container.
pub(crate) fn translate(
    container: &str,
    spec: &mut Spec,
    terminal: bool,
    first_pid: Option<u32>,
) -> Result<(), PlanError> {
    if spec.windows().is_some() || spec.solaris().is_some() || spec.vm().is_some() {
        return Err(PlanError::unsupported(
            "windows, solaris, vm",
            "only Linux containers can run",
        ));
    }
    if let Some(root) = spec.root_mut() {
        root.set_path(PathBuf::from(format!(
            "{}/rootfs",
            paths::container_dir(container)
        )));
    }
    if let Some(process) = spec.process_mut() {
        translate_process(process, terminal)?;
    }
    match spec.linux_mut() {
        Some(linux) => translate_linux(container, linux, first_pid),
        None => Ok(()),
    }
}

/// A process, of a container or an exec.
pub(crate) fn translate_process(process: &mut Process, terminal: bool) -> Result<(), PlanError> {
    process.set_terminal(Some(terminal));
    labels::drop_default(process)
}

/// Limits, of a container or of an update. A cpuset numbers the CPUs and memory nodes of the host; the
/// guest's are others.
pub(crate) fn translate_resources(resources: &mut LinuxResources) -> Result<(), PlanError> {
    let Some(cpu) = resources.cpu_mut() else {
        return Ok(());
    };
    for (list, name) in [(cpu.cpus(), "cpus"), (cpu.mems(), "mems")] {
        let text = list.as_deref().unwrap_or_default();
        if !is_number_list(text) {
            return Err(PlanError::invalid(
                format!("linux.resources.cpu.{name}"),
                format!("{text:?} is not a list of numbers"),
            ));
        }
    }
    cpu.set_cpus(None);
    cpu.set_mems(None);
    Ok(())
}

/// cpuset(7), "List format": `0-4,9`. Empty is no list.
fn is_number_list(text: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    text.is_empty()
        || text
            .trim()
            .split(',')
            .all(|range| match range.split_once('-') {
                Some((from, to)) => {
                    number(from).is_some_and(|from| number(to).is_some_and(|to| from <= to))
                }
                None => number(range).is_some(),
            })
}

fn translate_linux(
    container: &str,
    linux: &mut Linux,
    first_pid: Option<u32>,
) -> Result<(), PlanError> {
    linux.set_cgroups_path(Some(PathBuf::from(format!("/isopod/{container}"))));
    labels::drop_default_mount_label(linux)?;
    check_network_sysctls(linux)?;
    if linux.intel_rdt().is_some() {
        return Err(PlanError::unsupported(
            "linux.intelRdt",
            "the guest's CPU has no such classes",
        ));
    }
    if linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        return Err(PlanError::unsupported(
            "linux.netDevices",
            "not supported yet",
        ));
    }
    if let Some(resources) = linux.resources_mut() {
        translate_resources(resources)?;
    }
    for (place, device) in linux.devices().iter().flatten().enumerate() {
        let character = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
        let pipe = device.typ() == LinuxDeviceType::P;
        if !(pipe || character && devices::exists_in_guest(device.major(), device.minor())) {
            return Err(PlanError::unsupported(
                format!("linux.devices[{place}] ({})", device.path().display()),
                "a device of the host cannot be given to a virtual machine yet",
            ));
        }
    }
    if let Some(namespaces) = linux.namespaces().clone() {
        let translated = namespaces.into_iter().enumerate();
        let translated: Result<Vec<_>, _> = translated
            .map(|(place, namespace)| translate_namespace(place, namespace, first_pid))
            .collect();
        linux.set_namespaces(Some(translated?.into_iter().flatten().collect()));
    }
    Ok(())
}

/// runc's rule: a container that shares the host's network does not set its parameters. In the guest
/// nothing of the network namespace is left to tell by.
fn check_network_sysctls(linux: &Linux) -> Result<(), PlanError> {
    let mut namespaces = linux.namespaces().iter().flatten();
    if namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
        return Ok(());
    }
    for name in linux.sysctl().iter().flat_map(|map| map.keys()) {
        if name.starts_with("net.") || name.starts_with("net/") {
            return Err(PlanError::invalid(
                format!("linux.sysctl[{name:?}]"),
                "it is not allowed in the host's network namespace",
            ));
        }
    }
    Ok(())
}

fn translate_namespace(
    place: usize,
    mut namespace: LinuxNamespace,
    first_pid: Option<u32>,
) -> Result<Option<LinuxNamespace>, PlanError> {
    let kind = namespace.typ();
    if kind == LinuxNamespaceType::Network {
        return Ok(None);
    }
    let Some(path) = namespace.path() else {
        return Ok(Some(namespace));
    };
    let field = format!("linux.namespaces[{place}] ({kind}, {})", path.display());
    let name = match kind {
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::User => "user",
        _ => {
            return Err(PlanError::unsupported(
                field,
                "a namespace of the host cannot be joined by a virtual machine",
            ));
        }
    };
    let Some(pid) = first_pid else {
        return Err(PlanError::unsupported(
            field,
            "the pod has no other running container whose namespace could be joined",
        ));
    };
    namespace.set_path(Some(PathBuf::from(format!("/proc/{pid}/ns/{name}"))));
    Ok(Some(namespace))
}

#[cfg(test)]
#[path = "guest_spec_tests.rs"]
mod tests;
