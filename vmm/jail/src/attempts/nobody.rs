//! What only a process with an empty root and nobody's rights fails at: paths, files, privileges.

use super::*;

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
