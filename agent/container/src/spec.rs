//! Reading a specification, and refusing at once what this runtime does not do.
//!
//! Nothing is ignored silently. What is left out on purpose:
//! - unknown properties, because the specification says so ("extensibility");
//! - `annotations`, which speak to whoever made the bundle;
//! - `linux.cgroupsPath`, which names a cgroup of the host; the guest's tree is its own;
//! - the absence of a cgroup namespace: hosts with cgroup v1 leave it out, a guest always gives one;
//! - the `path` of a network namespace, and a new one: a pod's containers share the guest's;
//! - the CPUs and memory nodes of `resources.cpu`, which the host has taken out.

use oci_spec::runtime::{
    Hooks, Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};
use serde::de::DeserializeOwned;

mod linux;
mod process;

pub use process::check as check_process;

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
    linux::check(spec, linux)?;
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
    let maps = [
        (mount.uid_mappings(), "uidMappings"),
        (mount.gid_mappings(), "gidMappings"),
    ];
    let mapped = maps.iter().any(|(map, _)| !some(map).is_empty());
    for (map, name) in maps {
        if mapped {
            linux::check_map(&field(name), some(map))?;
        }
    }
    let options: MountOptions =
        options::parse(some(mount.options())).map_err(|refused| SpecError::Unsupported {
            field: field("options"),
            what: format!("option {:?}", refused.0),
        })?;
    if options.id_mapped.is_some() && !mapped {
        return Err(invalid(
            field("options"),
            "an id-mapped mount needs uidMappings and gidMappings",
        ));
    }
    if options.copy_up && mount.typ().as_deref() != Some("tmpfs") {
        return Err(invalid(
            field("options"),
            "tmpcopyup is an option of a tmpfs",
        ));
    }
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
    check_place(&field("destination"), mount)
}

/// runc's rule (CVE-2019-19921 and its kin): /proc is the kernel's, but for the files that lxcfs and its
/// like put over some of it.
fn check_place(field: &str, mount: &Mount) -> Result<(), SpecError> {
    const ALLOWED: &[&str] = &[
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "net/dev",
        "sys/kernel/ns_last_pid",
        "sys/crypto/fips_enabled",
    ];
    let place = crate::mounts::paths::cleaned(mount.destination());
    let Ok(below) = place.strip_prefix("proc") else {
        return Ok(());
    };
    let kind = mount.typ().as_deref().unwrap_or_default();
    if below.as_os_str().is_empty() {
        let source = mount
            .source()
            .as_deref()
            .unwrap_or(std::path::Path::new(""));
        let bind = kind == "bind" || is_bind(mount);
        if kind == "proc" || bind && source.starts_with("/proc") {
            return Ok(());
        }
    } else if ALLOWED
        .iter()
        .any(|allowed| below == std::path::Path::new(allowed))
    {
        return Ok(());
    }
    Err(invalid(
        field,
        format!(
            "{:?} is inside /proc, which nothing may hide",
            mount.destination()
        ),
    ))
}

fn is_bind(mount: &Mount) -> bool {
    some(mount.options())
        .iter()
        .any(|option| option == "bind" || option == "rbind")
}

#[allow(deprecated)] // `prestart` is deprecated, and still used.
fn check_hooks(hooks: &Hooks) -> Result<(), SpecError> {
    for (list, name) in [
        (hooks.prestart(), "prestart"),
        (hooks.create_runtime(), "createRuntime"),
        (hooks.poststart(), "poststart"),
        (hooks.poststop(), "poststop"),
    ] {
        // The host takes them out and runs them.
        if !some(list).is_empty() {
            return Err(unsupported(
                format!("hooks.{name}"),
                "a hook of the host in the guest",
            ));
        }
    }
    for (list, name) in [
        (hooks.create_container(), "createContainer"),
        (hooks.start_container(), "startContainer"),
    ] {
        for (index, hook) in some(list).iter().enumerate() {
            let field = |part: &str| format!("hooks.{name}[{index}].{part}");
            if !hook.path().is_absolute() {
                return Err(invalid(field("path"), "it is not an absolute path"));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Err(invalid(field("timeout"), "it is not greater than zero"));
            }
            for (list, part) in [(hook.args(), "args"), (hook.env(), "env")] {
                for text in some(list) {
                    no_nul(&field(part), text)?;
                }
            }
        }
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
