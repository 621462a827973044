//! Who the process is: ids, capabilities, limits.

use std::{fs, str::FromStr as _};

use caps::{CapSet, CapsHashSet};
use nix::{
    sys::{
        resource::{Resource, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use oci_spec::runtime::{Capabilities, PosixRlimitType, Process};
use rustix::thread::set_keep_capabilities;

use super::{InitError, act};

/// Raises or lowers resource limits; as root, before capabilities go.
pub(super) fn set_limits(process: &Process) -> Result<(), InitError> {
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let resource = resource(limit.typ());
        setrlimit(resource, limit.soft(), limit.hard()).map_err(|e| {
            act(e, || {
                format!("process.rlimits[{index}]: set {}", limit.typ())
            })
        })?;
    }
    Ok(())
}

/// The kernel's name of a limit.
pub(super) fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

/// The five sets as the kernel's.
struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    permitted: CapsHashSet,
    inheritable: CapsHashSet,
    ambient: CapsHashSet,
}

impl Sets {
    /// Without `process.capabilities` a process has none, as with runc.
    fn of(process: &Process) -> Self {
        // What this kernel does not know cannot be given; runc warns and goes on.
        let known = caps::runtime::thread_all_supported();
        let set = |wanted: Option<&Capabilities>| -> CapsHashSet {
            wanted
                .into_iter()
                .flatten()
                .filter_map(|cap| caps::Capability::from_str(&format!("CAP_{cap}")).ok())
                .filter(|cap| known.contains(cap))
                .collect()
        };
        let all = process.capabilities().as_ref();
        Self {
            bounding: set(all.and_then(|c| c.bounding().as_ref())),
            effective: set(all.and_then(|c| c.effective().as_ref())),
            permitted: set(all.and_then(|c| c.permitted().as_ref())),
            inheritable: set(all.and_then(|c| c.inheritable().as_ref())),
            ambient: set(all.and_then(|c| c.ambient().as_ref())),
        }
    }
}

fn capability_error(set: CapSet) -> impl FnOnce(caps::errors::CapsError) -> InitError {
    move |e| InitError::Act {
        act: format!("process.capabilities: set the {set:?} set"),
        reason: e.to_string(),
    }
}

/// Becomes the user, with exactly the capabilities asked for.
pub(super) fn become_user(process: &Process) -> Result<(), InitError> {
    let sets = Sets::of(process);
    for cap in caps::runtime::thread_all_supported() {
        if !sets.bounding.contains(&cap) {
            caps::drop(None, CapSet::Bounding, cap).map_err(capability_error(CapSet::Bounding))?;
        }
    }
    let user = process.user();
    // Else leaving uid 0 would clear the permitted set before it is given its value.
    set_keep_capabilities(true).map_err(|e| act(e, || "keep capabilities".to_owned()))?;
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    setgroups(&groups)
        .map_err(|e| act(e, || "process.user.additionalGids: setgroups".to_owned()))?;
    let gid = Gid::from_raw(user.gid());
    setresgid(gid, gid, gid)
        .map_err(|e| act(e, || format!("process.user.gid: set {}", user.gid())))?;
    let uid = Uid::from_raw(user.uid());
    setresuid(uid, uid, uid)
        .map_err(|e| act(e, || format!("process.user.uid: set {}", user.uid())))?;
    set_keep_capabilities(false).map_err(|e| act(e, || "keep capabilities".to_owned()))?;
    if let Some(mask) = user.umask() {
        umask(Mode::from_bits_truncate(mask));
    } else {
        umask(Mode::from_bits_truncate(0o022));
    }
    // Effective must be a part of permitted at every moment; inheritable needs it to grow.
    for (set, value) in [
        (CapSet::Inheritable, &sets.inheritable),
        (CapSet::Effective, &CapsHashSet::new()),
        (CapSet::Permitted, &sets.permitted),
        (CapSet::Effective, &sets.effective),
    ] {
        caps::set(None, set, value).map_err(capability_error(set))?;
    }
    caps::clear(None, CapSet::Ambient).map_err(capability_error(CapSet::Ambient))?;
    for cap in &sets.ambient {
        // The kernel gives only what is permitted and inheritable too; runc ignores the rest.
        if sets.permitted.contains(cap) && sets.inheritable.contains(cap) {
            caps::raise(None, CapSet::Ambient, *cap).map_err(capability_error(CapSet::Ambient))?;
        }
    }
    Ok(())
}

/// The home directory that the container's /etc/passwd gives a user; `/` without an entry.
pub(super) fn home(uid: u32) -> String {
    // Read no more than a large organisation's: the file is the image's.
    const LONGEST: u64 = 4 << 20;
    let small = fs::metadata("/etc/passwd").is_ok_and(|m| m.is_file() && m.len() <= LONGEST);
    let text = if small {
        fs::read_to_string("/etc/passwd").unwrap_or_default()
    } else {
        String::new()
    };
    home_in(&text, uid).unwrap_or("/").to_owned()
}

/// passwd(5): name:password:UID:GID:comment:directory:shell.
fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.nth(2)?.parse::<u32>().ok()?;
        let home = fields.nth(2)?;
        (found == uid && !home.is_empty()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n:::\nx:x:7:7::\n\
        web:x:1000:1000:,,,:/srv/web:/bin/false\nnohome:x:8:8:::\n";

    #[rstest]
    #[case(0, Some("/root"))]
    #[case(1000, Some("/srv/web"))]
    #[case(7, None)]
    #[case(8, None)]
    #[case(9, None)]
    fn home_comes_from_passwd(#[case] uid: u32, #[case] home: Option<&str>) {
        assert_eq!(home_in(PASSWD, uid), home);
    }
}
