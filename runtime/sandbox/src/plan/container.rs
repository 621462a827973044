//! A container: its mounts on the host, and its spec for the guest.

use std::path::{Path, PathBuf};

use isopod_protocol::limits;
use nix::mount::MsFlags;
use oci_spec::runtime::Spec;

use super::{
    BindPlan, HostFacts, HostHooks, PlanError, RootfsPlan, SourceKind, UNTRUSTED, guest_spec,
    mount_options, mounts, paths::check_id,
};
use crate::{ContainerRequest, RootfsMount, StdioRequest};

/// All that must be done on the host for a container, and what the agent is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerPlan {
    pub id: String,
    /// In order, each on top of the one before.
    pub rootfs: Vec<RootfsPlan>,
    pub binds: Vec<BindPlan>,
    /// The guest's config.json.
    pub spec_json: Vec<u8>,
    pub stdio: StdioRequest,
    pub hooks: HostHooks,
}

/// Plans a container. `first_pid`: the guest's pid of the pod's first container, unless this is it.
pub(crate) fn plan_container(
    request: &ContainerRequest,
    first_pid: Option<u32>,
    host: &dyn HostFacts,
) -> Result<ContainerPlan, PlanError> {
    check_id("container id", &request.id)?;
    let mut spec = request.spec.clone();
    let rootfs = plan_rootfs(request, &spec, host)?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let binds = mounts::plan_mounts(&request.id, &request.bundle, &mut mounts, host)?;
    spec.set_mounts(Some(mounts));
    let hooks = HostHooks::take(&request.id, &request.bundle, &mut spec)?;
    guest_spec::translate(&request.id, &mut spec, request.stdio.terminal, first_pid)?;
    let spec_json = serde_json::to_vec(&spec)
        .map_err(|error| PlanError::invalid("config.json", error.to_string()))?;
    if spec_json.len() > limits::SPEC_LEN {
        return Err(PlanError::invalid(
            "config.json",
            format!(
                "{} bytes are more than {}",
                spec_json.len(),
                limits::SPEC_LEN
            ),
        ));
    }
    Ok(ContainerPlan {
        id: request.id.clone(),
        rootfs,
        binds,
        spec_json,
        stdio: request.stdio,
        hooks,
    })
}

/// An exec's process as the guest is to have it.
pub(crate) fn plan_exec(exec_id: &str, request: &crate::ExecRequest) -> Result<Vec<u8>, PlanError> {
    check_id("exec id", exec_id)?;
    let mut process = request.process.clone();
    guest_spec::translate_process(&mut process, request.stdio.terminal)?;
    serde_json::to_vec(&process).map_err(|error| PlanError::invalid("process", error.to_string()))
}

fn plan_rootfs(
    request: &ContainerRequest,
    spec: &Spec,
    host: &dyn HostFacts,
) -> Result<Vec<RootfsPlan>, PlanError> {
    if !request.rootfs.is_empty() {
        let steps = request.rootfs.iter().enumerate();
        return steps
            .map(|(place, mount)| plan_rootfs_mount(place, mount, host))
            .collect();
    }
    let Some(root) = spec.root() else {
        return Err(PlanError::invalid("root", "missing"));
    };
    // A relative path begins at the bundle (OCI runtime specification, config.md, Root).
    let source = request.bundle.join(root.path());
    directory("root.path", &source, host)?;
    Ok(vec![RootfsPlan::Bind {
        source,
        recursive: true,
        read_only: false,
    }])
}

fn plan_rootfs_mount(
    place: usize,
    mount: &RootfsMount,
    host: &dyn HostFacts,
) -> Result<RootfsPlan, PlanError> {
    let field = format!("rootfs[{place}] ({})", mount.fstype);
    let options = mount_options::split(&mount.options);
    if mount.fstype == "bind" || options.flags.contains(MsFlags::MS_BIND) {
        let source = PathBuf::from(&mount.source);
        if !options.data.is_empty() {
            return Err(PlanError::invalid(
                field,
                format!(
                    "unknown options of a bind mount: {}",
                    options.data.join(",")
                ),
            ));
        }
        directory(&field, &source, host)?;
        return Ok(RootfsPlan::Bind {
            source,
            recursive: options.flags.contains(MsFlags::MS_REC),
            read_only: options.flags.contains(MsFlags::MS_RDONLY),
        });
    }
    // A file taken for a block device is a guess that nobody asked us to make.
    if options
        .data
        .iter()
        .any(|option| option == "loop" || option.starts_with("loop="))
    {
        return Err(PlanError::unsupported(
            field,
            "option `loop`: give a block device",
        ));
    }
    let plain = |text: &str| !text.is_empty() && !text.contains('\0');
    if !plain(&mount.fstype)
        || mount.source.contains('\0')
        || options.data.iter().any(|o| !plain(o))
    {
        return Err(PlanError::invalid(field, "empty or with a zero byte"));
    }
    Ok(RootfsPlan::Filesystem {
        fstype: mount.fstype.clone(),
        source: mount.source.clone(),
        flags: options.flags | UNTRUSTED,
        data: options.data.join(","),
    })
}

fn directory(field: &str, path: &Path, host: &dyn HostFacts) -> Result<(), PlanError> {
    match host.kind_of(path) {
        Ok(SourceKind::Directory) => Ok(()),
        Ok(_) => Err(PlanError::invalid(
            field,
            format!("{} is not a directory", path.display()),
        )),
        Err(error) => Err(PlanError::invalid(
            field,
            format!("{}: {error}", path.display()),
        )),
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
