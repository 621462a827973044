//! seccomp(2).

use std::io;

/// struct sock_filter.
pub(crate) use libc::sock_filter as Instruction;

/// SECCOMP_FILTER_FLAG_TSYNC.
pub(crate) const TSYNC: u64 = 1;
/// SECCOMP_FILTER_FLAG_LOG.
pub(crate) const LOG: u64 = 2;
/// SECCOMP_FILTER_FLAG_SPEC_ALLOW.
pub(crate) const SPEC_ALLOW: u64 = 4;

/// Filters this process's system calls, for good. Needs CAP_SYS_ADMIN or no_new_privs.
pub(crate) fn install(program: &[Instruction], flags: u64) -> io::Result<()> {
    let length =
        u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let raw = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `raw` points at `length` instructions, which the kernel copies and checks; it writes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const raw,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
