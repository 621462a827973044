//! The spec as the guest is to have it: what names something of the host is translated or removed.
//!
//! | field | in the guest |
//! |---|---|
//! | network namespace | removed: the pod's network is the machine's |
//! | ipc, uts, pid namespace with a path | joins the pod's first container |
//! | ipc, uts, pid, mount, cgroup, user namespace without a path | kept |
//! | cgroupsPath | `/isopod/<id>`: the host's hierarchy does not exist there |
//! | cpuset of resources | removed: it numbers the host's CPUs and memory nodes |
//! | AppArmor profile, SELinux labels | removed: they name policy that the host's kernel holds; the machine's border takes their place |
//! | hooks, devices of the host, intelRdt, netDevices | an error names them |

use std::path::PathBuf;

use isopod_protocol::paths;
use oci_spec::runtime::{
    Linux, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, Process, Spec,
};

use super::{PlanError, devices};

/// Translates everything but the mounts. `first_pid` is the guest's pid of the pod's first
/// container's init, unless this is that container.
pub(crate) fn translate(
    container: &str,
    spec: &mut Spec,
    terminal: bool,
    first_pid: Option<u32>,
) -> Result<(), PlanError> {
    if has_hooks(spec) {
        return Err(PlanError::unsupported(
            "hooks",
            "they are programs of the host and cannot run in a virtual machine",
        ));
    }
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
        translate_process(process, terminal);
    }
    match spec.linux_mut() {
        Some(linux) => translate_linux(container, linux, first_pid),
        None => Ok(()),
    }
}

/// A process, of a container or an exec.
pub(crate) fn translate_process(process: &mut Process, terminal: bool) {
    process.set_terminal(Some(terminal));
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
}

fn has_hooks(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else {
        return false;
    };
    #[allow(deprecated)] // prestart is deprecated, but Docker uses it
    let lists = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    lists
        .iter()
        .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
}

fn translate_linux(
    container: &str,
    linux: &mut Linux,
    first_pid: Option<u32>,
) -> Result<(), PlanError> {
    linux.set_cgroups_path(Some(PathBuf::from(format!("/isopod/{container}"))));
    linux.set_mount_label(None);
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
    if let Some(resources) = linux.resources_mut()
        && let Some(cpu) = resources.cpu_mut()
    {
        cpu.set_cpus(None);
        cpu.set_mems(None);
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
