//! Who the process is and what it may do.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::{Error, Ids, sys};

/// Keeps `keep` and becomes `ids`, for good.
pub(crate) fn reduce(ids: Ids, keep: &[Capability]) -> Result<(), Error> {
    let act = |act: &'static str| move |source| Error::Capabilities { act, source };
    let keep: CapsHashSet = keep.iter().copied().collect();
    let permitted = caps::read(None, CapSet::Permitted).map_err(act("read permitted"))?;
    if let Some(missing) = keep.difference(&permitted).next() {
        return Err(Error::CapabilityMissing(*missing));
    }
    // The bounding set first: leaving it takes CAP_SETPCAP.
    let bounding = caps::read(None, CapSet::Bounding).map_err(act("read bounding"))?;
    for capability in bounding.difference(&keep) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(act("drop bounding"))?;
    }
    privileges("lock the secure bits", sys::lock_securebits())?;
    become_user(ids)?;
    caps::clear(None, CapSet::Inheritable).map_err(act("clear inheritable"))?;
    caps::set(None, CapSet::Effective, &keep).map_err(act("set effective"))?;
    caps::set(None, CapSet::Permitted, &keep).map_err(act("set permitted"))?;
    privileges("give up new privileges", sys::set_no_new_privs())?;
    privileges("forbid core dumps", sys::set_undumpable())
}

/// Arranges for SIGKILL when the parent (thread) ends. What was missed until now, the lifeline tells.
pub(crate) fn die_with_parent() -> Result<(), Error> {
    privileges("ask for the death signal", sys::set_death_signal())
}

fn become_user(ids: Ids) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    privileges(
        "drop supplementary groups",
        setgroups(&[]).map_err(io::Error::from),
    )?;
    privileges(
        "change the group",
        setresgid(gid, gid, gid).map_err(io::Error::from),
    )?;
    privileges(
        "change the user",
        setresuid(uid, uid, uid).map_err(io::Error::from),
    )
}

fn privileges(act: &'static str, result: io::Result<()>) -> Result<(), Error> {
    result.map_err(|source| Error::Privileges { act, source })
}
