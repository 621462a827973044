//! `isopod-fs`: one process per VM that serves the pod's shared directory as a virtio-fs device and,
//! under QEMU, the vsock device, both over vhost-user.
//!
//! ```text
//! stdin: FileServerConfig (JSON)        main.rs
//!   -> claim descriptors, walls         walls.rs, filter.rs    (isopod-jail)
//!   -> front end connects               process.rs
//!        virtio-fs:  queue.rs (patience.rs) -> FUSE requests -> share/
//!        vsock:      vsock.rs  -> isopod-devices
//! ```
//! A library only so that its tests and the fuzzer reach its parts; nothing imports it. Imports
//! `devices`, `virtio`, `memory`, `jail`, `config`.
#![forbid(unsafe_code)]

pub mod filter;
mod patience;
pub mod process;
pub mod queue;
pub mod share;
pub mod vsock;
pub mod walls;
