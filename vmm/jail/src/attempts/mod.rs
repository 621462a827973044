//! Tries to get out of a jail, for the tests of the processes that it confines (feature `testing`).
//!
//! Each is one system call as whoever has taken over the process would make it: harmless where it
//! succeeds, if need be because its arguments make it fail after the walls were asked.

pub mod jailed;

use std::{
    io,
    os::{fd::RawFd, raw::c_long},
};

/// One system call.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// What it is meant to win.
    pub name: &'static str,
    /// Its number.
    pub number: c_long,
    /// Its errors where the walls without the filters stop it; none: only the filters do.
    pub refusals: &'static [i32],
    arguments: [usize; 6],
}

impl Attempt {
    /// Makes the call.
    ///
    /// # Errors
    /// Its own.
    pub fn make(&self) -> io::Result<i64> {
        let [a, b, c, d, e, f] = self.arguments;
        // SAFETY: attempts are made by this module only: pointers in them are to static memory that the
        // call reads, to leaked memory that nobody else uses, or null; none changes the mappings or the
        // descriptors that this program uses.
        let result = unsafe { libc::syscall(self.number, a, b, c, d, e, f) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }
}

/// What attempts are made at.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// A process of the host, in the host's numbers.
    pub process: i32,
    /// An inherited descriptor of a file.
    pub file: RawFd,
    /// An inherited descriptor of a namespace of the host's (`/proc/PID/ns/mnt`).
    pub namespace: RawFd,
}

const PATHS: &[i32] = &[libc::ENOENT, libc::EACCES];
const READ_ONLY: &[i32] = &[libc::EROFS, libc::EACCES, libc::ENOENT];
const PRIVILEGE: &[i32] = &[libc::EPERM];
/// Or a kernel that lacks the call.
const KERNEL: &[i32] = &[libc::EPERM, libc::ENOSYS];
const NOBODY: &[i32] = &[libc::ESRCH];
/// Nothing but the filter stops it.
const FILTERED: &[i32] = &[];

/// Room for the kernel's answers, for ever.
fn answer(bytes: usize) -> usize {
    Box::leak(vec![0u8; bytes].into_boxed_slice()).as_ptr() as usize
}

fn leaked<T>(value: T) -> usize {
    Box::leak(Box::new(value)) as *const T as usize
}

fn text(text: &'static std::ffi::CStr) -> usize {
    text.as_ptr() as usize
}

fn attempt(
    name: &'static str,
    number: c_long,
    arguments: &[usize],
    refusals: &'static [i32],
) -> Attempt {
    let mut all = [0; 6];
    for (to, from) in all.iter_mut().zip(arguments) {
        *to = *from;
    }
    Attempt {
        name,
        number,
        refusals,
        arguments: all,
    }
}

const HERE: usize = libc::AT_FDCWD as usize;

/// Those that only a process with an empty root and without rights fails at.
#[must_use]
pub fn of_nobody(targets: Targets) -> Vec<Attempt> {
    let Targets { file, .. } = targets;
    let file = file as usize;
    let read = libc::O_RDONLY as usize;
    let create = (libc::O_WRONLY | libc::O_CREAT) as usize;
    let how = leaked([0u64; 3]);
    let descriptors = leaked([1u64 << 21; 2]);
    let open = |name, path, flags, refusals| {
        attempt(
            name,
            libc::SYS_openat,
            &[HERE, text(path), flags, 0o600],
            refusals,
        )
    };
    vec![
        open("the host's passwords", c"/etc/shadow", read, PATHS),
        open("its own memory", c"/proc/self/mem", read, PATHS),
        open(
            "the host's root, by a process",
            c"/proc/1/root/etc/passwd",
            read,
            PATHS,
        ),
        open("a way up", c"../../../../../../etc/passwd", read, PATHS),
        open("a device", c"/dev/kvm", read, PATHS),
        open(
            "the root",
            c"/",
            read | libc::O_DIRECTORY as usize,
            &[libc::EACCES],
        ),
        open("a new file", c"/file", create, READ_ONLY),
        open(
            "a file without a name",
            c"/",
            (libc::O_RDWR | libc::O_TMPFILE) as usize,
            READ_ONLY,
        ),
        attempt(
            "open(2)",
            libc::SYS_open,
            &[text(c"/etc/passwd"), read],
            PATHS,
        ),
        attempt(
            "openat2(2)",
            libc::SYS_openat2,
            &[HERE, text(c"/etc/passwd"), how, 24],
            PATHS,
        ),
        attempt(
            "a way from a descriptor",
            libc::SYS_openat,
            &[file, text(c"../etc/passwd"), read],
            &[libc::ENOTDIR],
        ),
        attempt(
            "into a descriptor",
            libc::SYS_fchdir,
            &[file],
            &[libc::ENOTDIR],
        ),
        attempt(
            "a directory",
            libc::SYS_mkdirat,
            &[HERE, text(c"/dir"), 0o700],
            READ_ONLY,
        ),
        attempt(
            "a device node",
            libc::SYS_mknodat,
            &[HERE, text(c"/mem"), 0o20600, 0x101],
            &[libc::EPERM, libc::EACCES, libc::EROFS],
        ),
        attempt(
            "a link",
            libc::SYS_symlinkat,
            &[text(c"/etc"), HERE, text(c"/link")],
            READ_ONLY,
        ),
        attempt(
            "a name for a descriptor",
            libc::SYS_linkat,
            &[
                file,
                text(c""),
                HERE,
                text(c"/named"),
                libc::AT_EMPTY_PATH as usize,
            ],
            &[
                libc::EROFS,
                libc::EACCES,
                libc::ENOENT,
                libc::EXDEV,
                libc::EPERM,
            ],
        ),
        attempt(
            "to be root again",
            libc::SYS_setresuid,
            &[0, 0, 0],
            PRIVILEGE,
        ),
        attempt(
            "to be in root's group",
            libc::SYS_setresgid,
            &[0, 0, 0],
            PRIVILEGE,
        ),
        attempt(
            "more descriptors",
            libc::SYS_prlimit64,
            &[0, libc::RLIMIT_NOFILE as usize, descriptors],
            PRIVILEGE,
        ),
        attempt(
            "another program",
            libc::SYS_execve,
            &[text(c"/bin/sh"), 0, 0],
            PATHS,
        ),
    ]
}

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

/// A request to a driver, made of a descriptor that is none of its.
#[must_use]
pub fn request(name: &'static str, number: u32, targets: Targets) -> Attempt {
    let arguments = [targets.file as usize, number as usize];
    attempt(name, libc::SYS_ioctl, &arguments, FILTERED)
}
