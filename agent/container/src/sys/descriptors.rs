//! close_range(2).

use std::io;

/// Marks every descriptor from 3 on close-on-exec: what a container gets is 0, 1 and 2.
pub(crate) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: the call only sets a flag on descriptors; none is closed before exec.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
