//! What is aimed at the host and its kernel: other processes, namespaces, mounts, networks, kernel
//! interfaces.

use super::*;

/// Those at the host and its kernel.
#[must_use]
pub fn at_the_host(targets: Targets) -> Vec<Attempt> {
    let Targets {
        process,
        file,
        namespace,
    } = targets;
    let (process, file, namespace) = (process as usize, file as usize, namespace as usize);
    let root = text(c"/");
    let flag = |flag: i32| flag as usize;
    // A version 3 header and no capability: of another process, or all of them for this one.
    let all_capabilities = leaked([u32::MAX; 6]);
    let header = leaked([0x2008_0522_u32, 0]);
    let vector = leaked([answer(8), 8]);
    vec![
        // Other processes.
        attempt(
            "a signal to the host",
            libc::SYS_kill,
            &[process, 0],
            NOBODY,
        ),
        attempt(
            "a signal to everybody",
            libc::SYS_kill,
            &[usize::MAX, 0],
            NOBODY,
        ),
        attempt(
            "a signal to a thread",
            libc::SYS_tgkill,
            &[process, process, 0],
            NOBODY,
        ),
        attempt(
            "another's memory",
            libc::SYS_process_vm_readv,
            &[process, vector, 1, vector, 1, 0],
            NOBODY,
        ),
        attempt(
            "to trace another",
            libc::SYS_ptrace,
            &[flag(libc::PTRACE_SEIZE as i32), process],
            NOBODY,
        ),
        attempt(
            "another's descriptor",
            libc::SYS_pidfd_open,
            &[process, 0],
            NOBODY,
        ),
        attempt(
            "another's limits",
            libc::SYS_prlimit64,
            &[process, 7, 0, answer(16)],
            NOBODY,
        ),
        // Mounts and namespaces.
        attempt(
            "a mount",
            libc::SYS_mount,
            &[root, root, text(c"tmpfs"), 0, 0],
            PRIVILEGE,
        ),
        attempt(
            "to unmount",
            libc::SYS_umount2,
            &[root, flag(libc::MNT_DETACH)],
            PRIVILEGE,
        ),
        attempt(
            "a copy of a mount",
            libc::SYS_open_tree,
            &[HERE, root, 1],
            PRIVILEGE,
        ),
        attempt(
            "a file system",
            libc::SYS_fsopen,
            &[text(c"tmpfs"), 0],
            PRIVILEGE,
        ),
        attempt("another root", libc::SYS_chroot, &[root], PRIVILEGE),
        attempt(
            "to turn roots around",
            libc::SYS_pivot_root,
            &[root, root],
            PRIVILEGE,
        ),
        attempt(
            "the host's namespace",
            libc::SYS_setns,
            &[namespace, 0],
            PRIVILEGE,
        ),
        attempt(
            "a namespace",
            libc::SYS_unshare,
            &[flag(libc::CLONE_NEWNS)],
            PRIVILEGE,
        ),
        attempt(
            "a user namespace",
            libc::SYS_unshare,
            &[flag(libc::CLONE_NEWUSER)],
            FILTERED,
        ),
        attempt(
            "a file by its handle",
            libc::SYS_open_by_handle_at,
            &[file, leaked([8u32, 1, 2, 0]), 0],
            FILTERED,
        ),
        attempt(
            "another host name",
            libc::SYS_sethostname,
            &[text(c"x"), 1],
            PRIVILEGE,
        ),
        // Privileges.
        attempt(
            "all capabilities",
            libc::SYS_capset,
            &[header, all_capabilities],
            PRIVILEGE,
        ),
        attempt(
            "other groups",
            libc::SYS_setgroups,
            &[1, leaked([0u32])],
            FILTERED,
        ),
        attempt(
            "new privileges",
            libc::SYS_prctl,
            &[flag(libc::PR_SET_NO_NEW_PRIVS), 0],
            &[libc::EINVAL],
        ),
        attempt(
            "other secure bits",
            libc::SYS_prctl,
            &[flag(libc::PR_SET_SECUREBITS), 0],
            PRIVILEGE,
        ),
        attempt(
            "a real-time priority",
            libc::SYS_sched_setscheduler,
            &[0, 1, leaked([1u32])],
            PRIVILEGE,
        ),
        // The kernel.
        attempt(
            "a program in the kernel",
            libc::SYS_bpf,
            &[0, leaked([0u32; 18]), 72],
            &[libc::EPERM, libc::EINVAL],
        ),
        attempt(
            "a module",
            libc::SYS_finit_module,
            &[file, text(c""), 0],
            KERNEL,
        ),
        // No level: what is asked first is the privilege.
        attempt("the kernel's log", libc::SYS_syslog, &[8, 0, 0], PRIVILEGE),
        // The magic numbers are wrong: what is asked first is the privilege.
        attempt("the machine's end", libc::SYS_reboot, &[0, 0, 0], PRIVILEGE),
        attempt(
            "another kernel",
            libc::SYS_kexec_load,
            &[0, 0, 0, 0],
            KERNEL,
        ),
        attempt("input and output ports", libc::SYS_iopl, &[3], KERNEL),
        attempt(
            "another time",
            libc::SYS_clock_settime,
            &[0, leaked([1i64, 0])],
            PRIVILEGE,
        ),
        attempt(
            "page faults in the kernel",
            libc::SYS_userfaultfd,
            &[0],
            FILTERED,
        ),
        attempt(
            "requests without calls",
            libc::SYS_io_uring_setup,
            &[1, answer(120)],
            FILTERED,
        ),
        attempt("keys", libc::SYS_keyctl, &[0, usize::MAX - 2, 0], FILTERED),
        attempt(
            "a new key",
            libc::SYS_add_key,
            &[text(c"user"), text(c"k"), text(c"v"), 1, usize::MAX - 1],
            FILTERED,
        ),
        attempt(
            "counters of the processor",
            libc::SYS_perf_event_open,
            &[leaked([0u64; 16]), 0, usize::MAX, usize::MAX, 0],
            FILTERED,
        ),
        // Ways to new code.
        attempt(
            "a program from memory",
            libc::SYS_execveat,
            &[file, text(c""), 0, 0, flag(libc::AT_EMPTY_PATH)],
            FILTERED,
        ),
        attempt("a process", libc::SYS_clone, &[0, 0, 0, 0, 0], FILTERED),
        attempt(
            "executable memory",
            libc::SYS_mmap,
            &[
                0,
                4096,
                flag(libc::PROT_READ | libc::PROT_EXEC),
                flag(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
                usize::MAX,
                0,
            ],
            FILTERED,
        ),
        // A page that was never mapped.
        attempt(
            "memory made executable",
            libc::SYS_mprotect,
            &[4096, 4096, flag(libc::PROT_READ | libc::PROT_EXEC)],
            FILTERED,
        ),
        attempt(
            "another handler of signals",
            libc::SYS_rt_sigaction,
            &[flag(libc::SIGSYS), 0, answer(152), 8],
            FILTERED,
        ),
        // The network.
        attempt(
            "the internet",
            libc::SYS_socket,
            &[flag(libc::AF_INET), flag(libc::SOCK_STREAM), 0],
            FILTERED,
        ),
        attempt(
            "frames",
            libc::SYS_socket,
            &[flag(libc::AF_PACKET), flag(libc::SOCK_RAW), 0],
            PRIVILEGE,
        ),
        attempt(
            "another machine's vsock",
            libc::SYS_socket,
            &[flag(libc::AF_VSOCK), flag(libc::SOCK_STREAM), 0],
            FILTERED,
        ),
        attempt(
            "the kernel's ciphers",
            libc::SYS_socket,
            &[flag(libc::AF_ALG), flag(libc::SOCK_SEQPACKET), 0],
            FILTERED,
        ),
        attempt("to listen", libc::SYS_listen, &[file, 1], FILTERED),
    ]
}
