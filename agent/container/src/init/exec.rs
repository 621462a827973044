//! One more process of a container that exists.

use std::convert::Infallible;

use nix::{
    sched::{CloneFlags, setns},
    unistd::setsid,
};
use oci_spec::runtime::Process;

use super::{Handed, InitError, act, process, terminal};
use crate::job::Join;

/// Joins the container and executes the command.
pub(super) fn run(process: &Process, handed: Handed) -> Result<Infallible, InitError> {
    setsid().map_err(|e| act(e, || "begin a session".to_owned()))?;
    process::set_oom_score(process)?;
    for (join, fd) in &handed.joins {
        if *join == Join::Everything {
            // All at once, and by pidfd: no path of /proc that could change meanwhile.
            let flags = CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWCGROUP
                | CloneFlags::CLONE_NEWNS;
            setns(fd, flags).map_err(|e| act(e, || "join the container".to_owned()))?;
        }
    }
    let terminal = handed
        .streams
        .is_none()
        .then(|| terminal::open_here(process))
        .transpose()?;
    let profile = handed.seccomp.clone();
    process::execute(process, profile.as_ref(), handed, terminal)
}
