//! The spec's mounts: which are the guest's own, and which bring something of the host.
//!
//! A bind's source is bound on the host at `<pod>/shared/<container>/mounts/<N>`, where the guest
//! finds it at [`isopod_protocol::paths::container_dir`]`/mounts/<N>`. Not bound are:
//! - /dev/shm: containers of a pod share a tmpfs of the guest;
//! - what lies under /proc and /sys: the guest's own are meant, the host's say nothing about it;
//! - /dev/null and its kin: the guest has them.
//!
//! Sockets, pipes and other devices of the host cannot cross: an error names them.

use std::path::{Path, PathBuf};

use isopod_protocol::paths;
use oci_spec::runtime::Mount;

use super::{HostFacts, PlanError, devices};

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A socket, pipe or device, by its name for people.
    Other(&'static str),
}

/// Whether mounts that the host makes later beneath a bind's source appear in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// No.
    Private,
    /// Yes.
    FromHost,
}

/// One bind mount on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BindPlan {
    /// Its name below `mounts/`.
    pub index: usize,
    pub source: PathBuf,
    pub kind: SourceKind,
    pub read_only: bool,
    pub recursive: bool,
    pub propagation: Propagation,
}

/// Rewrites the spec's mounts for the guest and lists the binds that the host must make first.
pub(crate) fn plan_mounts(
    container: &str,
    bundle: &Path,
    mounts: &mut [Mount],
    host: &dyn HostFacts,
) -> Result<Vec<BindPlan>, PlanError> {
    let mut binds = Vec::new();
    for (place, mount) in mounts.iter_mut().enumerate() {
        let field = format!("mounts[{place}]");
        if is_bind(mount) {
            let index = binds.len();
            if let Some(bind) = plan_bind(&field, index, bundle, mount, host)? {
                let guest = format!("{}/mounts/{index}", paths::container_dir(container));
                mount.set_source(Some(guest.into()));
                binds.push(bind);
            }
        }
    }
    Ok(binds)
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// runc's rule: the type says so, or an option does.
fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || options(mount).any(|option| option == "bind" || option == "rbind")
}

fn plan_bind(
    field: &str,
    index: usize,
    bundle: &Path,
    mount: &mut Mount,
    host: &dyn HostFacts,
) -> Result<Option<BindPlan>, PlanError> {
    let destination = mount.destination().display().to_string();
    let field = format!("{field} ({destination})");
    let Some(source) = mount.source().clone() else {
        return Err(PlanError::invalid(field, "a bind mount without a source"));
    };
    // Relative sources begin at the bundle (OCI runtime specification, config.md, Mounts).
    let source = bundle.join(source);
    if has_parent(&source) {
        return Err(PlanError::invalid(
            field,
            format!("source {} contains `..`", source.display()),
        ));
    }
    if mount.destination() == Path::new("/dev/shm") {
        mount.set_source(Some(paths::POD_SHM.into()));
        return Ok(None);
    }
    if source.starts_with("/proc") || source.starts_with("/sys") || devices::is_guests_own(&source)
    {
        mount.set_source(Some(source));
        return Ok(None);
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(PlanError::unsupported(
            field,
            "id-mapped mounts are not supported yet",
        ));
    }
    let mut bind = BindPlan {
        index,
        kind: SourceKind::Directory,
        read_only: false,
        recursive: false,
        propagation: Propagation::Private,
        source,
    };
    for option in options(mount) {
        match option {
            "ro" | "rro" => bind.read_only = true,
            "rw" => bind.read_only = false,
            "rbind" => bind.recursive = true,
            "slave" | "rslave" => bind.propagation = Propagation::FromHost,
            "shared" | "rshared" => {
                return Err(PlanError::unsupported(
                    field,
                    "mounts that the guest makes cannot appear on the host: \
                     propagation `shared` (Bidirectional) is not possible in a virtual machine",
                ));
            }
            _ => {}
        }
    }
    bind.kind = match host.kind_of(&bind.source) {
        Ok(SourceKind::Other(what)) => {
            return Err(PlanError::unsupported(
                field,
                format!(
                    "source {} is a {what} of the host, which a virtual machine cannot reach",
                    bind.source.display()
                ),
            ));
        }
        Ok(kind) => kind,
        Err(error) => {
            return Err(PlanError::invalid(
                field,
                format!("source {}: {error}", bind.source.display()),
            ));
        }
    };
    Ok(Some(bind))
}

/// The kernel would resolve `..` after links; the checks above compare names.
fn has_parent(path: &Path) -> bool {
    path.components()
        .any(|part| part == std::path::Component::ParentDir)
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
