//! `isopod-jail`: puts a program that is not ours (QEMU) behind walls and becomes it.
//!
//! Started by the sandbox as PID 1 of a new PID namespace, with exactly the descriptors that the
//! program needs. Nothing of it remains once the program runs. `isopod-jail --help` tells the rest.

use std::{
    ffi::{CString, OsStr, OsString},
    os::{
        fd::RawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{ArgAction, Parser};
use isopod_jail::{
    Bind, BindAccess, Error, FileAccess, Ids, JailConfig, Limit, LimitedResource, Namespaces, Root,
    TmpfsRoot, close_all_except, inherited, lifeline,
    seccomp::{Argument, Call, Check, Filter, Mode},
};

/// Runs a program in a jail.
///
/// The program gets: new mount, network, IPC, UTS and cgroup namespaces (the caller makes the PID
/// namespace); a read-only tmpfs as its root that holds nothing but the binds; an unprivileged user;
/// no capability, not even in the bounding set; no_new_privs; no core dumps; landlock rules (reading
/// and executing only, no TCP, no abstract sockets or signals to the outside); a system call filter
/// that refuses what could open new ground (user namespaces, mounts, bpf, io_uring, ptrace, keys);
/// SIGKILL when its parent thread ends; an empty environment; standard streams and --keep-fd
/// descriptors and no others.
///
/// On success isopod-jail never returns: it becomes the program. On failure it prints one line and
/// exits with 125.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    /// The pod's id, for messages.
    #[arg(long)]
    name: String,
    /// Become this user; 0 is refused.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    uid: u32,
    /// Become this group, and no other; 0 is refused.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    gid: u32,
    /// A pipe or socket whose other end the caller holds; if that is closed already, the program is
    /// not run. It is closed when the program runs.
    #[arg(long, value_name = "FD")]
    lifeline: RawFd,
    /// Leave this descriptor open for the program. May be given many times.
    #[arg(long, value_name = "FD")]
    keep_fd: Vec<RawFd>,
    /// Bind this file or directory of the host into the new root, read-only, nosuid, nodev, at the
    /// same path; a symbolic link is copied as one. May be given many times.
    #[arg(long, value_name = "PATH")]
    bind_ro: Vec<PathBuf>,
    /// The same, but no error when it does not exist.
    #[arg(long, value_name = "PATH")]
    bind_ro_try: Vec<PathBuf>,
    /// The same, but at another path, so that the program does not learn where the host keeps it; a
    /// symbolic link is followed. May be given many times.
    #[arg(long, value_names = ["PATH", "TARGET"], num_args = 2, action = ArgAction::Append)]
    bind_ro_at: Vec<PathBuf>,
    /// Bind this device node into the new root, to be opened for reading and writing.
    #[arg(long, value_name = "PATH")]
    bind_dev: Vec<PathBuf>,
    /// Do not bind what dynamically linked programs need: /usr, /bin, /sbin, /lib, /lib64,
    /// /etc/ld.so.cache, /etc/alternatives (those that exist) and /dev/null.
    #[arg(long)]
    no_default_binds: bool,
    /// Open descriptors at most.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    limit_nofile: u64,
    /// Bytes of a file that the program writes at most. A memfd counts as a file, so guest memory
    /// must fit. Not limited when not given.
    #[arg(long, value_name = "BYTES")]
    limit_fsize: Option<u64>,
    /// The program (an absolute path) and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// What a dynamically linked program needs besides itself.
const DEFAULT_BINDS: [&str; 7] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
];

/// Refused to every program: roads to kernel code that QEMU has no business on. What needs a
/// capability fails anyway; these also do where a user namespace or no privilege at all would do.
const REFUSED: &[Call] = &[
    Call::with(
        libc::SYS_unshare,
        &[Argument {
            index: 0,
            check: Check::Masked {
                mask: NEW_USER,
                value: NEW_USER,
            },
        }],
        "a user namespace gives capabilities back",
    ),
    Call::with(
        libc::SYS_clone,
        &[Argument {
            index: 0,
            check: Check::Masked {
                mask: NEW_USER,
                value: NEW_USER,
            },
        }],
        "the same",
    ),
    Call::any(libc::SYS_setns, "joins namespaces of others"),
    Call::any(libc::SYS_mount, "mounts are for the parent"),
    Call::any(libc::SYS_umount2, "mounts are for the parent"),
    Call::any(libc::SYS_pivot_root, "the root stays"),
    Call::any(libc::SYS_chroot, "the root stays"),
    Call::any(libc::SYS_open_tree, "mounts are for the parent"),
    Call::any(libc::SYS_move_mount, "mounts are for the parent"),
    Call::any(libc::SYS_fsopen, "mounts are for the parent"),
    Call::any(libc::SYS_fsmount, "mounts are for the parent"),
    Call::any(libc::SYS_mount_setattr, "mounts are for the parent"),
    Call::any(
        libc::SYS_open_by_handle_at,
        "opens files without their paths",
    ),
    Call::any(libc::SYS_ptrace, "other processes are none of its business"),
    Call::any(
        libc::SYS_process_vm_readv,
        "other processes are none of its business",
    ),
    Call::any(
        libc::SYS_process_vm_writev,
        "other processes are none of its business",
    ),
    Call::any(
        libc::SYS_pidfd_getfd,
        "other processes are none of its business",
    ),
    Call::any(libc::SYS_bpf, "kernel code with a history"),
    Call::any(libc::SYS_perf_event_open, "kernel code with a history"),
    Call::any(libc::SYS_userfaultfd, "a tool of kernel exploits"),
    Call::any(
        libc::SYS_io_uring_setup,
        "kernel code with a history; goes around this filter",
    ),
    Call::any(libc::SYS_io_uring_enter, "the same"),
    Call::any(libc::SYS_io_uring_register, "the same"),
    Call::any(
        libc::SYS_keyctl,
        "keyrings are shared between users' processes",
    ),
    Call::any(
        libc::SYS_add_key,
        "keyrings are shared between users' processes",
    ),
    Call::any(
        libc::SYS_request_key,
        "keyrings are shared between users' processes",
    ),
    Call::any(libc::SYS_kexec_load, "the host's kernel stays"),
    Call::any(libc::SYS_kexec_file_load, "the host's kernel stays"),
    Call::any(libc::SYS_init_module, "the host's kernel stays"),
    Call::any(libc::SYS_finit_module, "the host's kernel stays"),
];
const NEW_USER: u32 = libc::CLONE_NEWUSER as u32;

/// clone3's flags lie in memory where a filter cannot look. ENOSYS makes the C library fall back to
/// clone.
const UNKNOWN: &[Call] = &[Call::any(libc::SYS_clone3, "its flags cannot be filtered")];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let name = arguments.name.clone();
    let Err(error) = run(arguments);
    // One line, with the causes: the reader of this is a log.
    let mut line = format!("isopod-jail: pod {name}: {error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(e) = cause {
        line.push_str(&format!(": {e}"));
        cause = e.source();
    }
    eprintln!("{line}");
    ExitCode::from(125)
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Jail(#[from] Error),
    #[error("{0:?} is no absolute path, or holds a NUL")]
    Program(OsString),
    #[error("cannot run {program:?}")]
    Exec {
        program: OsString,
        source: std::io::Error,
    },
}

fn run(arguments: Arguments) -> Result<std::convert::Infallible, RunError> {
    let mut keep = arguments.keep_fd.clone();
    keep.push(arguments.lifeline);
    // SAFETY: nothing was opened yet: the arguments were parsed from memory.
    unsafe { close_all_except(&keep) }?;
    let lifeline = inherited::claim(arguments.lifeline)?;
    let (program, command) = command(&arguments.command)?;
    // Compiled before the walls stand: installing is all that is left to do then.
    let filters = [
        Filter::compile("refused", Mode::Deny(libc::EPERM), REFUSED)?,
        Filter::compile("unknown", Mode::Deny(libc::ENOSYS), UNKNOWN)?,
    ];
    jail(&arguments).enter()?;
    for filter in &filters {
        filter.install()?;
    }
    // The death signal is armed: from here on the owner's end is ours. Did it end before?
    lifeline::check(&lifeline)?;
    let Err(errno) = nix::unistd::execve::<CString, CString>(&program, &command, &[]);
    Err(RunError::Exec {
        program: OsString::from_vec(program.into_bytes()),
        source: errno.into(),
    })
}

fn command(words: &[OsString]) -> Result<(CString, Vec<CString>), RunError> {
    let words = words
        .iter()
        .map(|w| CString::new(w.as_bytes()).map_err(|_| RunError::Program(w.clone())))
        .collect::<Result<Vec<_>, _>>()?;
    match words.first() {
        Some(program) if program.as_bytes().starts_with(b"/") => Ok((program.clone(), words)),
        other => {
            let word = other.map(|w| OsStr::from_bytes(w.as_bytes()).to_owned());
            Err(RunError::Program(word.unwrap_or_default()))
        }
    }
}

fn jail(arguments: &Arguments) -> JailConfig {
    let bind = |access, optional| {
        move |path: PathBuf| Bind {
            source: path.clone(),
            target: path,
            access,
            optional,
        }
    };
    let mut binds = Vec::new();
    if !arguments.no_default_binds {
        binds.extend(
            DEFAULT_BINDS
                .map(PathBuf::from)
                .map(bind(BindAccess::ReadOnly, true)),
        );
    }
    let asked = arguments.bind_ro.iter().map(|p| (p, false));
    let asked = asked.chain(arguments.bind_ro_try.iter().map(|p| (p, true)));
    for (path, optional) in asked {
        if !is_bound(&binds, path) {
            binds.push(bind(BindAccess::ReadOnly, optional)(path.clone()));
        }
    }
    for pair in arguments.bind_ro_at.chunks_exact(2) {
        if let [source, target] = pair {
            binds.push(Bind {
                source: source.canonicalize().unwrap_or_else(|_| source.clone()),
                target: target.clone(),
                access: BindAccess::ReadOnly,
                optional: false,
            });
        }
    }
    let mut devices = arguments.bind_dev.clone();
    if !arguments.no_default_binds {
        devices.push("/dev/null".into());
    }
    binds.extend(devices.iter().cloned().map(bind(BindAccess::Device, false)));
    let mut limits = vec![
        Limit {
            resource: LimitedResource::CoreSize,
            value: 0,
        },
        Limit {
            resource: LimitedResource::OpenFiles,
            value: arguments.limit_nofile,
        },
        Limit {
            resource: LimitedResource::MessageQueues,
            value: 0,
        },
    ];
    if let Some(value) = arguments.limit_fsize {
        limits.push(Limit {
            resource: LimitedResource::FileSize,
            value,
        });
    }
    JailConfig {
        namespaces: Namespaces::ALL,
        root: Root::Tmpfs(TmpfsRoot {
            binds,
            directories: vec![],
        }),
        ids: Ids {
            uid: arguments.uid,
            gid: arguments.gid,
        },
        capabilities: vec![],
        limits,
        file_access: Some(FileAccess {
            read_execute: vec!["/".into()],
            devices,
        }),
    }
}

/// Does the path lie in a directory that is bound already (`/bin/x` in `/usr`, where `/bin` is a
/// link)? It is there then, and a file cannot be made in a read-only bind.
fn is_bound(binds: &[Bind], path: &Path) -> bool {
    let Ok(real) = path.canonicalize() else {
        return false;
    };
    let in_bind = |b: &Bind| {
        b.source
            .canonicalize()
            .is_ok_and(|source| real.starts_with(source))
    };
    binds.iter().any(in_bind)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn root_is_refused_as_a_user() {
        let words = [
            "isopod-jail",
            "--name=p",
            "--uid=0",
            "--gid=1",
            "--lifeline=3",
            "--",
            "/x",
        ];
        assert!(Arguments::try_parse_from(words).is_err());
    }

    #[test]
    fn a_program_must_be_an_absolute_path() {
        assert!(command(&["qemu".into()]).is_err());
        assert!(command(&["/q\0".into()]).is_err());
        let (program, words) = command(&["/q".into(), "-a".into()]).unwrap();
        assert_eq!((program.as_bytes(), words.len()), (&b"/q"[..], 2));
    }
}
