//! virtio devices, a file or a folder each, apart from the transport that reaches their queues.
//!
//! Place in the flow: the monitor puts them behind virtio-mmio; `fs` puts `vsock` behind vhost-user
//! for QEMU. Imports `virtio`, `memory`, `config`.
#![forbid(unsafe_code)]

pub mod balloon;
pub mod blk;
pub mod console;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod rate;
pub mod rng;
mod timer;
pub mod vhost_user;
pub mod vsock;
