//! virtio devices, a file or a folder each, apart from the transport that reaches their queues.
//!
//! Place in the flow: `fs` puts them behind vhost-user for QEMU; the monitor will put them behind
//! virtio-mmio. Imports `virtio`, `memory`, `config`.
#![forbid(unsafe_code)]

pub mod vsock;
