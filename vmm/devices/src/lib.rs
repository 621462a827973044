//! virtio devices, a file or a folder each, apart from the transport that reaches their queues.
//!
//! Place in the flow: the monitor puts them behind virtio-mmio; `fs` puts `vsock` behind vhost-user
//! for QEMU. Imports `virtio`, `memory`, `config`.
#![forbid(unsafe_code)]

pub mod rng;
pub mod vsock;
