//! All that host and guest share: the agent's RPC, its limits, its vsock ports, the guest's paths.
//!
//! Place in the flow: `sandbox` speaks it on the host, `agent` answers it in the guest.
//! Imports no sibling; `sandbox` and `agent/agent` import it.

#![forbid(unsafe_code)]

pub mod debug;
pub mod limits;
pub mod paths;
pub mod ports;
pub mod stream;

/// The messages of `proto/agent.proto`.
#[allow(warnings, missing_docs, clippy::all)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The client and the server side of the `Agent` service.
#[allow(warnings, missing_docs, clippy::all)]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// Host and guest must agree on this number exactly: they ship together, so there is no skew to serve.
pub const PROTOCOL_VERSION: u32 = 1;
