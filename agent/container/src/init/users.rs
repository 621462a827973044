//! User namespaces: of a container, and of id-mapped mounts.
//!
//! In a user namespace of its own, or the pod's, a container's init has no rights over what belongs to the
//! guest. What needs them is done before it is entered, by the first stage ([`prepare`]): opening the root
//! filesystem and the sources of mounts, parameters of the network, higher hard limits.

use std::{fs, os::fd::OwnedFd};

use nix::{
    sys::{
        resource::{getrlimit, setrlimit},
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid},
};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::fs::CWD;

use super::{InitError, act, container, user};
use crate::{
    mounts::{self, Prepared, clone_tree},
    spec::{invalid, joins, namespace},
    sys::fork::{NewNamespaces, Side, fork_into},
};

/// What was made with the rights of the guest's root.
#[derive(Debug, Default)]
pub(super) struct Trees {
    /// The root filesystem, in a user namespace only.
    pub root: Option<OwnedFd>,
    /// One for each mount.
    pub mounts: Vec<Prepared>,
}

/// Is the container in a user namespace that is not the guest's?
pub(super) fn wanted(spec: &Spec) -> bool {
    spec.linux()
        .as_ref()
        .is_some_and(|linux| namespace(linux, LinuxNamespaceType::User).is_some())
}

/// Is it one of its own?
pub(super) fn wanted_new(spec: &Spec) -> bool {
    wanted(spec)
        && spec
            .linux()
            .as_ref()
            .is_some_and(|linux| !joins(linux, LinuxNamespaceType::User))
}

/// Does what later nobody may.
pub(super) fn prepare(spec: &Spec) -> Result<Trees, InitError> {
    let inside = wanted(spec);
    let mut trees = Trees::default();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let mut prepared = Prepared::default();
        if inside {
            prepared.tree = mounts::prepare(index, mount)?;
        }
        let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
        if let (Some(uids), Some(gids)) = (uids, gids)
            && !uids.is_empty()
        {
            prepared.users = Some(hold(uids, gids)?);
        }
        trees.mounts.push(prepared);
    }
    if !inside {
        return Ok(trees);
    }
    if let Some(root) = spec.root() {
        let tree = clone_tree(CWD, root.path(), true)
            .map_err(|e| act(e, || format!("root.path: open {:?}", root.path())))?;
        trees.root = Some(tree);
    }
    if let Some(linux) = spec.linux() {
        container::set_sysctls(linux, container::is_network)?;
    }
    if let Some(process) = spec.process() {
        raise_hard_limits(process)?;
    }
    Ok(trees)
}

/// A process in a user namespace may lower limits only; the soft ones stay.
fn raise_hard_limits(process: &oci_spec::runtime::Process) -> Result<(), InitError> {
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let resource = user::resource(limit.typ());
        let doing = || format!("process.rlimits[{index}]: raise {}", limit.typ());
        let (soft, hard) = getrlimit(resource).map_err(|e| act(e, doing))?;
        if hard < limit.hard() {
            setrlimit(resource, soft, limit.hard()).map_err(|e| act(e, doing))?;
        }
    }
    Ok(())
}

/// Writes the maps of a child's user namespace.
pub(super) fn map(child: i32, spec: &Spec) -> Result<(), InitError> {
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| invalid("linux", "a user namespace needs mappings"))?;
    write_map(child, "uid", linux.uid_mappings().as_deref())?;
    write_map(child, "gid", linux.gid_mappings().as_deref())
}

fn write_map(child: i32, kind: &str, map: Option<&[LinuxIdMapping]>) -> Result<(), InitError> {
    let lines: Vec<String> = map
        .unwrap_or_default()
        .iter()
        .map(|line| {
            format!(
                "{} {} {}\n",
                line.container_id(),
                line.host_id(),
                line.size()
            )
        })
        .collect();
    fs::write(format!("/proc/{child}/{kind}_map"), lines.concat())
        .map_err(|e| act(e, || format!("linux.{kind}Mappings: write the map")))
}

/// Becomes root of the user namespace.
pub(super) fn become_root() -> Result<(), InitError> {
    let doing = || "become root of the user namespace".to_owned();
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).map_err(|e| act(e, doing))?;
    setresgid(gid, gid, gid).map_err(|e| act(e, doing))?;
    setresuid(uid, uid, uid).map_err(|e| act(e, doing))
}

/// A user namespace with these maps, held open by nobody but the descriptor.
fn hold(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd, InitError> {
    let doing = || "make a user namespace for an id-mapped mount".to_owned();
    let new = NewNamespaces {
        user: true,
        pid: false,
    };
    let child = match fork_into(None, new).map_err(|e| act(e, doing))? {
        Side::Parent { child } => child,
        Side::Child => loop {
            // Until it is killed, a moment from now.
            std::thread::park();
        },
    };
    let made = write_map(child, "uid", Some(uids))
        .and_then(|()| write_map(child, "gid", Some(gids)))
        .and_then(|()| {
            fs::File::open(format!("/proc/{child}/ns/user"))
                .map(OwnedFd::from)
                .map_err(|e| act(e, doing))
        });
    let pid = Pid::from_raw(child);
    // It is our child and lives: neither can fail.
    let _ = kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
    made
}
