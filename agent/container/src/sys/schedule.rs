//! sched_setattr(2) and ioprio_set(2), which no safe wrapper has.

use std::io;

/// struct sched_attr, linux/sched/types.h, in its first form.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Sets the policy of a thread; 0 is the caller.
pub(crate) fn set_schedule(thread: libc::pid_t, mut schedule: Schedule) -> io::Result<()> {
    schedule.size = u32::try_from(size_of::<Schedule>()).unwrap_or(0);
    // SAFETY: the kernel reads `size` bytes of `schedule`, which is as long, and writes none when they
    // suffice; `thread` is a number.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw mut schedule, 0) };
    answer(result)
}

/// Sets the I/O priority of this process: class (1 real time, 2 best effort, 3 idle) and 0 to 7.
pub(crate) fn set_io_priority(class: u16, priority: u16) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    let value = libc::c_int::from(class) << 13 | libc::c_int::from(priority);
    // SAFETY: the call takes numbers only; 0 names the caller.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) };
    answer(result)
}

fn answer(result: libc::c_long) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
