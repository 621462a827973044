//! The walls around a host process as one value.
//!
//! ```text
//! caller opens what it needs from the host
//!    -> JailConfig::enter()   limits, namespaces, root, capabilities, user, no_new_privs, landlock,
//!                             death signal; the caller must still have one thread
//!    -> threads
//!    -> seccomp::Filter::install_on_all_threads() (or `install` per thread)
//! ```
//! Imported by the processes that it confines (`fs`, later the monitor) and by the `isopod-jail`
//! program, which confines programs that are not ours (QEMU). Imports no sibling. This is one of the
//! few crates where `unsafe` may stand, so it also offers safe forms of what confined processes need
//! of the kernel: claiming an inherited descriptor, detached mounts. And what all of them need:
//! the owner's end seen, a log.

#[cfg(feature = "testing")]
pub mod attempts;
mod config;
mod descriptors;
mod enter;
mod error;
pub mod inherited;
mod landlock;
pub mod lifeline;
pub mod log;
pub mod mounts;
mod privileges;
mod root;
pub mod seccomp;
mod sys;
pub mod violation;

pub use caps::Capability;
pub use config::{
    Bind, BindAccess, FileAccess, Ids, JailConfig, Limit, LimitedResource, Namespaces, Root,
    TmpfsRoot,
};
pub use descriptors::close_all_except;
pub use error::Error;
