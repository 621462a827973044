//! `linux.seccomp` -> filters. First form: none; see `check`.

use oci_spec::runtime::LinuxSeccomp;

use super::InitError;
use crate::spec::{SpecError, unsupported};

/// Compiled filters, in the order to install them.
pub(super) struct Filters {}

/// Refuses what cannot be expressed.
pub(crate) fn check(_profile: &LinuxSeccomp) -> Result<(), SpecError> {
    Err(unsupported("linux.seccomp", "a system call filter"))
}

/// Compiles a profile.
pub(super) fn compile(profile: Option<&LinuxSeccomp>) -> Result<Filters, InitError> {
    if let Some(profile) = profile {
        check(profile)?;
    }
    Ok(Filters {})
}

/// Installs the filters on this process, for good.
pub(super) fn apply(_filters: &Filters) -> Result<(), InitError> {
    Ok(())
}
