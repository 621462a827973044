//! A container's directory and mounts beneath the pod's shared directory.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use super::{
    HostError,
    mount::{self, Bind},
    pod_dir,
};
use crate::plan::{
    BindPlan, ContainerPaths, ContainerPlan, PodPaths, Propagation, RootfsPlan, SourceKind,
};

/// <container>/mounts/<N>.
const DEPTH: usize = 2;

/// Makes everything that the plan asks for; on failure, nothing stays.
pub(crate) fn attach(pod: &PodPaths, plan: &ContainerPlan) -> Result<(), HostError> {
    let paths = pod.container(&plan.id);
    let act = || {
        make_directory(&paths.tree)?;
        make_directory(&paths.tree.join("rootfs"))?;
        for step in &plan.rootfs {
            attach_rootfs(pod, &paths, &plan.id, step)?;
        }
        make_directory(&paths.tree.join("mounts"))?;
        plan.binds
            .iter()
            .try_for_each(|bind| attach_bind(pod, &paths, &plan.id, bind))
    };
    // Another container's directory must survive a second one of its name.
    if paths.tree.symlink_metadata().is_ok() {
        return Err(HostError::path("make", &paths.tree)(io::Error::from(
            io::ErrorKind::AlreadyExists,
        )));
    }
    act().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = detach(pod, &plan.id);
    })
}

/// Unmounts and removes all of a container. Goes on after a failure; tells the first. Idempotent.
pub(crate) fn detach(pod: &PodPaths, id: &str) -> Result<(), HostError> {
    let paths = pod.container(id);
    let mut first = None;
    let mut note = |result: Result<(), HostError>| {
        if let Err(error) = result {
            first.get_or_insert(error);
        }
    };
    let rootfs = paths.shared.join("rootfs");
    let mounts = paths.shared.join("mounts");
    for found in mount::mounts_beneath(&paths.shared)?.iter().rev() {
        if found.path == rootfs || found.path.parent() == Some(&mounts) {
            note(mount::detach(&found.path));
        }
    }
    if let Some(left) = mount::mounts_beneath(&paths.shared)?.first() {
        note(Err(HostError::Foreign {
            path: left.path.clone(),
        }));
    } else {
        note(pod_dir::remove_directory(&paths.tree, DEPTH));
    }
    first.map_or(Ok(()), Err)
}

fn attach_rootfs(
    pod: &PodPaths,
    paths: &ContainerPaths,
    id: &str,
    step: &RootfsPlan,
) -> Result<(), HostError> {
    let target = paths.shared.join("rootfs");
    match step {
        RootfsPlan::Filesystem {
            fstype,
            source,
            flags,
            data,
        } => mount::filesystem(fstype, source, &target, *flags, data),
        RootfsPlan::Bind {
            source,
            recursive,
            read_only,
        } => {
            let bind = Bind {
                source,
                kind: SourceKind::Directory,
                read_only: *read_only,
                recursive: *recursive,
                propagation: Propagation::Private,
            };
            through_stage(pod, &format!("{id}.rootfs"), &bind, &target)
        }
    }
}

fn attach_bind(
    pod: &PodPaths,
    paths: &ContainerPaths,
    id: &str,
    plan: &BindPlan,
) -> Result<(), HostError> {
    let name = plan.index.to_string();
    make_mount_point(&paths.tree.join("mounts").join(&name), plan.kind)?;
    let bind = Bind {
        source: &plan.source,
        kind: plan.kind,
        read_only: plan.read_only,
        recursive: plan.recursive,
        propagation: plan.propagation,
    };
    let target = paths.shared.join("mounts").join(&name);
    through_stage(pod, &format!("{id}.{name}"), &bind, &target)
}

fn through_stage(
    pod: &PodPaths,
    name: &str,
    bind: &Bind<'_>,
    target: &Path,
) -> Result<(), HostError> {
    let stage = pod.stage().join(name);
    make_mount_point(&stage, bind.kind)?;
    let bound = mount::bind(bind, &stage, target);
    let removed = if bind.kind == SourceKind::Directory {
        fs::remove_dir(&stage)
    } else {
        fs::remove_file(&stage)
    };
    bound?;
    removed.map_err(HostError::path("remove", &stage))
}

fn make_mount_point(path: &Path, kind: SourceKind) -> Result<(), HostError> {
    if kind == SourceKind::Directory {
        return make_directory(path);
    }
    let mut options = fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o644).open(path);
    made.map(drop).map_err(HostError::path("make", path))
}

fn make_directory(path: &Path) -> Result<(), HostError> {
    let made = fs::DirBuilder::new().mode(0o755).create(path);
    made.map_err(HostError::path("make", path))
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
