//! One more process of a container that exists.

use std::convert::Infallible;

use nix::{
    sched::{CloneFlags, setns},
    unistd::setsid,
};
use oci_spec::runtime::Process;

use super::{
    Handed, InitError, act,
    hooks::Hooks,
    process::{self, Rest},
    terminal, users,
};
use crate::job::{Also, Join};

/// Joins the container and executes the command.
pub(super) fn run(process: &Process, also: Also, handed: Handed) -> Result<Infallible, InitError> {
    setsid().map_err(|e| act(e, || "begin a session".to_owned()))?;
    for (join, fd) in &handed.joins {
        if *join == Join::Everything {
            // All at once, and by pidfd: no path of /proc that could change meanwhile.
            let mut flags = CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP
                | CloneFlags::CLONE_NEWNS;
            if also.user {
                flags |= CloneFlags::CLONE_NEWUSER;
            }
            if also.time {
                flags |= CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
            }
            setns(fd, flags).map_err(|e| act(e, || "join the container".to_owned()))?;
        }
    }
    if also.user {
        users::become_root()?;
    }
    let terminal = handed
        .streams
        .is_none()
        .then(|| terminal::open_here(process))
        .transpose()?;
    let profile = handed.seccomp.clone();
    let rest = Rest {
        profile: profile.as_ref(),
        hooks: &Hooks::default(),
        in_user_namespace: also.user,
    };
    process::execute(process, rest, handed, terminal)
}
