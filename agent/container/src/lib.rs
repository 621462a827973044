//! One OCI container in the guest: what a specification means to the guest's kernel.
//!
//! ```text
//!  agent                      init, first stage            init, the container's own process
//!  -----                      -----------------            ---------------------------------
//!  Launch::create  --spawn--> reads the job
//!                             clone3 into the cgroup  ---> waits at the gate
//!  Report::Forked  <--pid---- waits to be known
//!  Word::Known     ---------> opens the gate, ends    ---> namespaces, mounts, pivot_root, user ...
//!  Report::Ready   <-------------------------------------- all done but exec
//!  Word::Start     --------------------------------------> execve
//!  Report::Closed  <-------------------------------------- (the channel closes on exec)
//! ```
//!
//! `init` is the same binary again, re-executed: one thread, nothing inherited from the agent but what
//! it is handed. The first stage stays the parent until the agent knows the pid, so that no exit can
//! come before its process is registered.
//!
//! Imported by `agent` alone; imports no sibling. Everything here is synchronous; `unsafe` lives in
//! [`sys`] only.
#![deny(unsafe_code)]

pub mod cgroup;
pub mod id;
mod init;
mod job;
mod launch;
mod mounts;
mod seccomp;
pub mod spec;
pub mod state;
pub mod sys;

pub use init::{INIT_NAME, run as run_init};
pub use job::{Also, Failure, FailureKind};
pub use launch::{Launch, LaunchError, NamespaceKind, Namespaces, Report, Streams, Word};
