//! How a monitor is controlled: messages, client and server of `proto/monitor.proto`, and the
//! descriptors that go with them ([`parcel`]).
//!
//! Place in the flow: the sandbox's `kvm` engine is the client, `vmm` the server. Imports no sibling.
#![forbid(unsafe_code)]

pub mod parcel;

/// The messages.
#[allow(warnings, missing_docs, clippy::all)]
pub mod monitor {
    include!(concat!(env!("OUT_DIR"), "/monitor.rs"));
}

/// The client and the server side of the `Monitor` service.
#[allow(warnings, missing_docs, clippy::all)]
pub mod monitor_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/monitor_ttrpc.rs"));
}
