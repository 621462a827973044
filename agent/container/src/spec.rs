//! Reading a specification, and refusing at once what this runtime does not do.
//!
//! Nothing is ignored silently. What is left out on purpose:
//! - unknown properties, because the specification says so ("extensibility");
//! - `annotations`, which speak to whoever made the bundle;
//! - `linux.cgroupsPath`, which names a cgroup of the host; the guest's tree is its own;
//! - the absence of a cgroup namespace: hosts with cgroup v1 leave it out, a guest always gives one;
//! - the `path` of a network namespace, and a new one: a pod's containers share the guest's.

use oci_spec::runtime::{
    Hooks, Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};
use serde::de::DeserializeOwned;

use crate::{
    cgroup::{devices, limits},
    mounts::options::{self, MountOptions},
};

/// Why a specification is refused. Displays as `json.path: reason`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It is not what the specification asks for.
    #[error("{field}: {reason}")]
    Invalid {
        /// JSON path.
        field: String,
        /// In words.
        reason: String,
    },
    /// It is right, but not done here.
    #[error("{field}: {what} is not supported")]
    Unsupported {
        /// JSON path.
        field: String,
        /// What is asked for.
        what: String,
    },
}

pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> SpecError {
    SpecError::Invalid {
        field: field.into(),
        reason: reason.into(),
    }
}

pub(crate) fn unsupported(field: impl Into<String>, what: impl Into<String>) -> SpecError {
    SpecError::Unsupported {
        field: field.into(),
        what: what.into(),
    }
}

/// Parses JSON; an error names the property. `whole` is its name when the root itself is at fault.
fn parse<T: DeserializeOwned>(whole: &str, json: &[u8]) -> Result<T, SpecError> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let path = e.path().to_string();
        // The root, or text that ends too early to say where.
        let field = if matches!(path.as_str(), "." | "?") {
            whole.to_owned()
        } else {
            path
        };
        invalid(field, e.inner().to_string())
    })
}

/// Parses and checks a container's config.json.
pub fn parse_spec(json: &[u8]) -> Result<Spec, SpecError> {
    let spec = parse("config.json", json)?;
    check(&spec)?;
    Ok(spec)
}

/// Parses and checks an exec's `process`.
pub fn parse_process(json: &[u8]) -> Result<Process, SpecError> {
    let process = parse("process", json)?;
    check_process(&process)?;
    Ok(process)
}

/// Parses and checks an update's `linux.resources`.
pub fn parse_resources(json: &[u8]) -> Result<LinuxResources, SpecError> {
    let resources = parse("linux.resources", json)?;
    check_resources(&resources)?;
    Ok(resources)
}

fn some<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or_default()
}

fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

/// Refuses what cannot be honoured.
pub fn check(spec: &Spec) -> Result<(), SpecError> {
    let version = spec.version();
    if !version.starts_with("1.") {
        return Err(invalid(
            "ociVersion",
            format!("version {version:?} is not of the 1.x line"),
        ));
    }
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| invalid("root", "a container needs a root filesystem"))?;
    if !root.path().is_absolute() {
        return Err(invalid(
            "root.path",
            format!("{:?} is not an absolute path of the guest", root.path()),
        ));
    }
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| invalid("process", "a container needs a process"))?;
    check_process(process)?;
    for (index, mount) in some(spec.mounts()).iter().enumerate() {
        check_mount(index, mount)?;
    }
    if let Some(hooks) = spec.hooks() {
        check_hooks(hooks)?;
    }
    for (present, field) in [
        (spec.solaris().is_some(), "solaris"),
        (spec.windows().is_some(), "windows"),
        (spec.vm().is_some(), "vm"),
        (spec.zos().is_some(), "zos"),
    ] {
        if present {
            return Err(unsupported(field, "another platform"));
        }
    }
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| invalid("linux", "a mount namespace is required"))?;
    check_linux(linux)?;
    check_names(spec, linux)
}

fn check_names(spec: &Spec, linux: &Linux) -> Result<(), SpecError> {
    let own_uts = namespace(linux, LinuxNamespaceType::Uts).is_some();
    for (name, field) in [
        (spec.hostname(), "hostname"),
        (spec.domainname(), "domainname"),
    ] {
        if !text(name).is_empty() && !own_uts {
            return Err(invalid(field, "it cannot be set without a UTS namespace"));
        }
        if text(name).len() > 64 {
            return Err(invalid(field, "it is longer than 64 bytes"));
        }
    }
    Ok(())
}

/// The namespace of a kind, if the specification lists it.
pub fn namespace(linux: &Linux, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    some(linux.namespaces()).iter().find(|n| n.typ() == kind)
}

/// Does the specification ask to join an existing namespace of this kind?
pub fn joins(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    namespace(linux, kind).is_some_and(|n| {
        n.path()
            .as_ref()
            .is_some_and(|path| !path.as_os_str().is_empty())
    })
}

/// Checks a process, of a container or of an exec.
pub fn check_process(process: &Process) -> Result<(), SpecError> {
    let args = some(process.args());
    if args.is_empty() {
        return Err(invalid("process.args", "there is no command"));
    }
    for (index, arg) in args.iter().enumerate() {
        no_nul(&format!("process.args[{index}]"), arg)?;
    }
    for (index, variable) in some(process.env()).iter().enumerate() {
        no_nul(&format!("process.env[{index}]"), variable)?;
    }
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", "it is not an absolute path"));
    }
    if process.command_line().is_some() {
        return Err(unsupported("process.commandLine", "a Windows command line"));
    }
    if !text(process.user().username()).is_empty() {
        return Err(unsupported("process.user.username", "a user by name"));
    }
    if process.user().umask().is_some_and(|mask| mask > 0o777) {
        return Err(invalid("process.user.umask", "it is above 0777"));
    }
    let profile = text(process.apparmor_profile());
    if !profile.is_empty() && profile != "unconfined" {
        return Err(unsupported(
            "process.apparmorProfile",
            format!("profile {profile:?}: the guest kernel has no AppArmor, which"),
        ));
    }
    if !text(process.selinux_label()).is_empty() {
        return Err(unsupported(
            "process.selinuxLabel",
            "a label: the guest kernel has no SELinux, which",
        ));
    }
    for (present, field, what) in [
        (
            process.io_priority().is_some(),
            "process.ioPriority",
            "an I/O priority",
        ),
        (
            process.scheduler().is_some(),
            "process.scheduler",
            "a scheduling policy",
        ),
        (
            process.exec_cpu_affinity().is_some(),
            "process.execCPUAffinity",
            "a CPU affinity",
        ),
    ] {
        if present {
            return Err(unsupported(field, what));
        }
    }
    for (index, limit) in some(process.rlimits()).iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if limit.soft() > limit.hard() {
            return Err(invalid(field, "the soft limit is above the hard limit"));
        }
        let again = some(process.rlimits())
            .iter()
            .take(index)
            .any(|earlier| earlier.typ() == limit.typ());
        if again {
            return Err(invalid(field, format!("{} comes twice", limit.typ())));
        }
    }
    if process
        .oom_score_adj()
        .is_some_and(|adj| !(-1000..=1000).contains(&adj))
    {
        return Err(invalid(
            "process.oomScoreAdj",
            "it is outside -1000 to 1000",
        ));
    }
    Ok(())
}

fn no_nul(field: &str, value: &str) -> Result<(), SpecError> {
    if value.contains('\0') {
        return Err(invalid(field, "it holds a NUL character"));
    }
    Ok(())
}

fn check_mount(index: usize, mount: &Mount) -> Result<(), SpecError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    if !mount.destination().is_absolute() {
        return Err(invalid(field("destination"), "it is not an absolute path"));
    }
    if !some(mount.uid_mappings()).is_empty() {
        return Err(unsupported(field("uidMappings"), "an id-mapped mount"));
    }
    if !some(mount.gid_mappings()).is_empty() {
        return Err(unsupported(field("gidMappings"), "an id-mapped mount"));
    }
    let options: MountOptions =
        options::parse(some(mount.options())).map_err(|refused| SpecError::Unsupported {
            field: field("options"),
            what: format!("option {:?}", refused.0),
        })?;
    if options.is_bind() || mount.typ().as_deref() == Some("bind") {
        if mount
            .source()
            .as_ref()
            .is_none_or(|source| !source.is_absolute())
        {
            return Err(invalid(
                field("source"),
                "a bind mount needs an absolute path",
            ));
        }
        if let Some(option) = options.data.first() {
            return Err(unsupported(
                field("options"),
                format!("option {option:?} of a bind mount"),
            ));
        }
    } else if mount.typ().as_deref().unwrap_or_default().is_empty() {
        return Err(invalid(
            field("type"),
            "it is needed unless the mount is a bind",
        ));
    }
    Ok(())
}

#[allow(deprecated)] // `prestart` is deprecated, and still used.
fn check_hooks(hooks: &Hooks) -> Result<(), SpecError> {
    for (list, name) in [
        (hooks.prestart(), "prestart"),
        (hooks.create_runtime(), "createRuntime"),
        (hooks.create_container(), "createContainer"),
        (hooks.start_container(), "startContainer"),
        (hooks.poststart(), "poststart"),
        (hooks.poststop(), "poststop"),
    ] {
        if !some(list).is_empty() {
            return Err(unsupported(format!("hooks.{name}"), "a hook in the guest"));
        }
    }
    Ok(())
}

fn check_linux(linux: &Linux) -> Result<(), SpecError> {
    check_namespaces(linux)?;
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
        !some(linux.uid_mappings()).is_empty(),
        "linux.uidMappings",
        "a user namespace",
    )?;
    empty_map(
        !some(linux.gid_mappings()).is_empty(),
        "linux.gidMappings",
        "a user namespace",
    )?;
    empty_map(
        linux.time_offsets().as_ref().is_some_and(|m| !m.is_empty()),
        "linux.timeOffsets",
        "a time namespace",
    )?;
    empty_map(
        linux.memory_policy().is_some(),
        "linux.memoryPolicy",
        "a memory policy",
    )?;
    empty_map(
        linux.personality().is_some(),
        "linux.personality",
        "an execution domain",
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
    for name in linux.sysctl().iter().flat_map(|map| map.keys()) {
        let bad = name.is_empty() || name.split(['.', '/']).any(str::is_empty);
        if bad || name.contains('\0') {
            return Err(invalid(
                format!("linux.sysctl[{name:?}]"),
                "it is not the name of a parameter",
            ));
        }
    }
    if let Some(seccomp) = linux.seccomp() {
        crate::seccomp::check(seccomp)?;
    }
    if let Some(resources) = linux.resources() {
        check_resources(resources)?;
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
            LinuxNamespaceType::User => return Err(unsupported(field, "a user namespace")),
            LinuxNamespaceType::Time => return Err(unsupported(field, "a time namespace")),
            LinuxNamespaceType::Mount if path => {
                return Err(unsupported(
                    format!("{field}.path"),
                    "joining a mount namespace",
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

/// Checks limits, of a container or of an update.
pub fn check_resources(resources: &LinuxResources) -> Result<(), SpecError> {
    limits::plan(resources)?;
    devices::compile(resources.devices().as_deref().unwrap_or_default()).map(drop)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
