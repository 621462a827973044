//! AppArmor profiles and SELinux labels.
//!
//! They name policy that the host's kernel holds; the guest's kernel has neither module. A container
//! engine puts its *default* on every container of a host that has the module, to keep containers away
//! from the host and from one another: a virtual machine does that better, and such a label is dropped.
//! Any other was written by someone for this workload and says more than that: dropping it would take
//! away what they rely on, so it is refused by name.

use oci_spec::runtime::{Linux, Process};

use super::PlanError;

/// The default profiles of containerd's CRI plugin, Docker, nerdctl, and the absence of one.
const DEFAULT_PROFILES: &[&str] = &[
    "",
    "unconfined",
    "cri-containerd.apparmor.d",
    "docker-default",
    "nerdctl-default",
];
/// The types of container-selinux that engines give by themselves; `spc_t` is that of privileged ones.
const DEFAULT_TYPES: &[&str] = &[
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "spc_t",
];
const DEFAULT_FILE_TYPES: &[&str] = &["container_file_t", "container_ro_file_t"];

/// Takes an engine's default labels off a process; refuses others.
pub(super) fn drop_default(process: &mut Process) -> Result<(), PlanError> {
    let profile = process.apparmor_profile().as_deref().unwrap_or_default();
    if !DEFAULT_PROFILES.contains(&profile) {
        return Err(refused("process.apparmorProfile", "profile", profile));
    }
    let label = process.selinux_label().as_deref().unwrap_or_default();
    if !is_default(label, DEFAULT_TYPES) {
        return Err(refused("process.selinuxLabel", "label", label));
    }
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    Ok(())
}

/// The same for the label of a container's files.
pub(super) fn drop_default_mount_label(linux: &mut Linux) -> Result<(), PlanError> {
    let label = linux.mount_label().as_deref().unwrap_or_default();
    if !is_default(label, DEFAULT_FILE_TYPES) {
        return Err(refused("linux.mountLabel", "label", label));
    }
    linux.set_mount_label(None);
    Ok(())
}

fn is_default(label: &str, types: &[&str]) -> bool {
    // user:role:type:level
    let kind = label.split(':').nth(2).unwrap_or_default();
    label.is_empty() || types.contains(&kind)
}

fn refused(field: &str, what: &str, value: &str) -> PlanError {
    PlanError::unsupported(
        field,
        format!(
            "{what} {value:?} names policy of the host's kernel, which the virtual machine's kernel \
             does not have; only an engine's default is dropped in its favour"
        ),
    )
}
