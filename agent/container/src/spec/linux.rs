//! `linux`: namespaces, maps, parameters, devices.

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};

use super::{SpecError, invalid, joins, namespace, some, text, unsupported};
use crate::mounts::options;

pub(super) fn check(spec: &Spec, linux: &Linux) -> Result<(), SpecError> {
    check_namespaces(linux)?;
    check_user_namespace(spec, linux)?;
    check_time_offsets(linux)?;
    check_sysctls(linux)?;
    let empty_map = |present: bool, field: &str, what: &str| {
        if present {
            return Err(unsupported(field, what));
        }
        Ok(())
    };
    empty_map(
        linux.net_devices().as_ref().is_some_and(|m| !m.is_empty()),
        "linux.netDevices",
        "moving a network device",
    )?;
    empty_map(
        linux.memory_policy().is_some(),
        "linux.memoryPolicy",
        "a memory policy",
    )?;
    if !text(linux.mount_label()).is_empty() {
        return Err(unsupported(
            "linux.mountLabel",
            "a label: the guest kernel has no SELinux, which",
        ));
    }
    if let Some(rdt) = linux.intel_rdt()
        && *rdt != oci_spec::runtime::LinuxIntelRdt::default()
    {
        return Err(unsupported("linux.intelRdt", "cache allocation"));
    }
    if let Some(personality) = linux.personality()
        && !some(personality.flags()).is_empty()
    {
        return Err(unsupported(
            "linux.personality.flags",
            "a flag of an execution domain",
        ));
    }
    let propagation = text(linux.rootfs_propagation());
    if !propagation.is_empty() && options::propagation(propagation).is_none() {
        return Err(invalid(
            "linux.rootfsPropagation",
            format!("{propagation:?} is not a propagation type"),
        ));
    }
    for (index, device) in some(linux.devices()).iter().enumerate() {
        if !device.path().is_absolute() {
            return Err(invalid(
                format!("linux.devices[{index}].path"),
                "it is not an absolute path",
            ));
        }
        if device.typ() == oci_spec::runtime::LinuxDeviceType::A {
            return Err(invalid(
                format!("linux.devices[{index}].type"),
                "a device is one of c, b, u, p",
            ));
        }
    }
    if let Some(seccomp) = linux.seccomp() {
        crate::seccomp::check(seccomp)?;
    }
    if let Some(resources) = linux.resources() {
        super::check_resources(resources)?;
    }
    Ok(())
}

fn check_namespaces(linux: &Linux) -> Result<(), SpecError> {
    for (index, wanted) in some(linux.namespaces()).iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let again = some(linux.namespaces())
            .iter()
            .take(index)
            .any(|earlier| earlier.typ() == wanted.typ());
        if again {
            return Err(invalid(
                field,
                format!("the {} namespace comes twice", wanted.typ()),
            ));
        }
        let path = wanted
            .path()
            .as_ref()
            .is_some_and(|path| !path.as_os_str().is_empty());
        match wanted.typ() {
            LinuxNamespaceType::Mount if path => {
                return Err(unsupported(
                    format!("{field}.path"),
                    "joining a mount namespace",
                ));
            }
            LinuxNamespaceType::Time if path => {
                return Err(unsupported(
                    format!("{field}.path"),
                    "joining a time namespace",
                ));
            }
            LinuxNamespaceType::Cgroup if path => {
                return Err(unsupported(
                    format!("{field}.path"),
                    "joining a cgroup namespace",
                ));
            }
            _ => {}
        }
    }
    if namespace(linux, LinuxNamespaceType::Mount).is_none() {
        return Err(invalid("linux.namespaces", "a mount namespace is required"));
    }
    Ok(())
}

/// Checks one id map (user_namespaces(7)).
pub(super) fn check_map(field: &str, map: &[LinuxIdMapping]) -> Result<(), SpecError> {
    /// The kernel's limit.
    const MOST: usize = 340;
    if map.is_empty() {
        return Err(invalid(
            field,
            "a mapping of users needs one of groups, and the other way round",
        ));
    }
    if map.len() > MOST {
        return Err(invalid(
            field,
            format!("{} lines are more than {MOST}", map.len()),
        ));
    }
    for (index, line) in map.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if line.size() == 0 {
            return Err(invalid(format!("{field}.size"), "it is zero"));
        }
        for (first, name) in [
            (line.container_id(), "containerID"),
            (line.host_id(), "hostID"),
        ] {
            // The last id means "none".
            let fits = first
                .checked_add(line.size())
                .is_some_and(|end| end < u32::MAX);
            if !fits {
                return Err(invalid(
                    format!("{field}.{name}"),
                    "the range goes beyond the last id",
                ));
            }
        }
    }
    Ok(())
}

/// Is an id of the container in a map?
fn maps(map: &[LinuxIdMapping], id: u32) -> bool {
    map.iter().any(|line| {
        id.checked_sub(line.container_id())
            .is_some_and(|offset| offset < line.size())
    })
}

fn check_user_namespace(spec: &Spec, linux: &Linux) -> Result<(), SpecError> {
    let sides = [
        (linux.uid_mappings(), "linux.uidMappings"),
        (linux.gid_mappings(), "linux.gidMappings"),
    ];
    if namespace(linux, LinuxNamespaceType::User).is_none() {
        for (map, field) in sides {
            if !some(map).is_empty() {
                return Err(invalid(
                    field,
                    "there is no user namespace in linux.namespaces",
                ));
            }
        }
        return Ok(());
    }
    if joins(linux, LinuxNamespaceType::User) {
        // The namespace has its maps; containerd repeats them.
        return Ok(());
    }
    for (map, field) in sides {
        if some(map).is_empty() {
            return Err(invalid(field, "a user namespace needs mappings"));
        }
        check_map(field, some(map))?;
        if !maps(some(map), 0) {
            return Err(invalid(field, "there is no mapping for root"));
        }
    }
    let (uids, gids) = (some(linux.uid_mappings()), some(linux.gid_mappings()));
    if let Some(process) = spec.process() {
        let user = process.user();
        let groups = some(user.additional_gids())
            .iter()
            .map(|gid| (*gid, "additionalGids"));
        if !maps(uids, user.uid()) {
            let reason = format!("user {} is not in linux.uidMappings", user.uid());
            return Err(invalid("process.user.uid", reason));
        }
        for (gid, name) in groups.chain([(user.gid(), "gid")]) {
            if !maps(gids, gid) {
                let reason = format!("group {gid} is not in linux.gidMappings");
                return Err(invalid(format!("process.user.{name}"), reason));
            }
        }
    }
    Ok(())
}

fn check_time_offsets(linux: &Linux) -> Result<(), SpecError> {
    let own = namespace(linux, LinuxNamespaceType::Time).is_some();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let field = format!("linux.timeOffsets[{clock:?}]");
        if !own {
            return Err(invalid(
                field,
                "there is no time namespace in linux.namespaces",
            ));
        }
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(invalid(
                field,
                "a time namespace has the clocks monotonic and boottime",
            ));
        }
        if offset
            .nanosecs()
            .is_some_and(|nanoseconds| nanoseconds > 999_999_999)
        {
            return Err(invalid(
                format!("{field}.nanosecs"),
                "it is above 999999999",
            ));
        }
    }
    Ok(())
}

/// runc's rule: a container sets the parameters of namespaces that it has, and no others. (Whether it has
/// a network namespace is the host's to say; here all share one.)
fn check_sysctls(linux: &Linux) -> Result<(), SpecError> {
    let has = |kind| namespace(linux, kind).is_some();
    for name in linux.sysctl().iter().flat_map(|map| map.keys()) {
        let refused = |reason: &str| Err(invalid(format!("linux.sysctl[{name:?}]"), reason));
        if name.is_empty() || name.split(['.', '/']).any(str::is_empty) || name.contains('\0') {
            return refused("it is not the name of a parameter");
        }
        let plain = name.replace('/', ".");
        let of_ipc = matches!(
            plain.as_str(),
            "kernel.msgmax"
                | "kernel.msgmnb"
                | "kernel.msgmni"
                | "kernel.sem"
                | "kernel.shmall"
                | "kernel.shmmax"
                | "kernel.shmmni"
                | "kernel.shm_rmid_forced"
        ) || plain.starts_with("fs.mqueue.");
        if of_ipc {
            if !has(LinuxNamespaceType::Ipc) {
                return refused("it is not allowed without an IPC namespace");
            }
        } else if plain == "kernel.domainname" {
            if !has(LinuxNamespaceType::Uts) {
                return refused("it is not allowed without a UTS namespace");
            }
        } else if plain == "kernel.hostname" {
            return refused("it is not allowed: the field hostname sets it");
        } else if !plain.starts_with("net.") {
            return refused("it is not a parameter of a namespace");
        }
    }
    Ok(())
}
