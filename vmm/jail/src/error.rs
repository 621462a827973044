//! What can go wrong while walls are put up. Every failure ends the process that wanted them.

use std::{io, os::fd::RawFd, path::PathBuf};

/// The act that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Entering needs a single thread: namespaces and root would hold for that thread only.
    #[error("cannot enter a jail with {0} threads running, only with one")]
    Threads(usize),
    /// The number of threads could not be read.
    #[error("cannot count threads in /proc/self/task")]
    CountThreads(#[source] io::Error),
    /// setrlimit(2).
    #[error("cannot limit {resource} to {value}")]
    Limit {
        /// Which.
        resource: &'static str,
        /// To what.
        value: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// unshare(2).
    #[error("cannot make new namespaces")]
    Namespaces(#[source] io::Error),
    /// A name for the new UTS namespace.
    #[error("cannot set the host name in the new UTS namespace")]
    HostName(#[source] io::Error),
    /// The directory that shall become the root is no mount point.
    #[error("{0} is not a mount point and cannot become a root")]
    RootNotMountPoint(PathBuf),
    /// A step on the way to the new root.
    #[error("new root: cannot {act} {path}")]
    Root {
        /// Which step.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A mount that is handed out as a descriptor.
    #[error("detached mount: cannot {act} {path}")]
    DetachedMount {
        /// Which step.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A capability to keep that the process does not have.
    #[error("the process lacks {0}, which it shall keep")]
    CapabilityMissing(caps::Capability),
    /// Reading or changing capabilities.
    #[error("cannot {act} capabilities")]
    Capabilities {
        /// Which step.
        act: &'static str,
        /// Why not.
        #[source]
        source: caps::errors::CapsError,
    },
    /// prctl(2) or set*id(2).
    #[error("cannot {act}")]
    Privileges {
        /// Which step.
        act: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// landlock could not be set up.
    #[error("cannot restrict file access with landlock")]
    Landlock(#[source] ::landlock::RulesetError),
    /// A path of a landlock rule could not be opened.
    #[error("cannot open {path} for a landlock rule")]
    LandlockPath {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ::landlock::PathFdError,
    },
    /// A filter could not be compiled.
    #[error("cannot compile the system call filter {filter}")]
    CompileFilter {
        /// Its name.
        filter: &'static str,
        /// Why not.
        #[source]
        source: seccompiler::BackendError,
    },
    /// A filter could not be installed.
    #[error("cannot install the system call filter {filter}")]
    InstallFilter {
        /// Its name.
        filter: &'static str,
        /// Why not.
        #[source]
        source: seccompiler::Error,
    },
    /// sigaction(2).
    #[error("cannot report violations of the system call filters")]
    ReportViolations(#[source] io::Error),
    /// The owner of the process is already gone.
    #[error("the owner is gone: descriptor {0} is closed at the other end")]
    OwnerGone(RawFd),
    /// poll(2) on the lifeline.
    #[error("cannot watch the lifeline, descriptor {fd}")]
    Lifeline {
        /// Its number.
        fd: RawFd,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A number that names no inherited descriptor.
    #[error("descriptor {fd} was not inherited")]
    NotInherited {
        /// The number.
        fd: RawFd,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A number that was claimed before.
    #[error("descriptor {0} is claimed twice")]
    ClaimedTwice(RawFd),
    /// A descriptor that this process opened itself, or one of the standard streams.
    #[error("descriptor {0} is this process's own and cannot be claimed")]
    NotForClaiming(RawFd),
    /// close_range(2).
    #[error("cannot close descriptors {first} to {last}")]
    CloseRange {
        /// First number.
        first: u32,
        /// Last number.
        last: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
