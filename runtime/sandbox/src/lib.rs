//! One pod's virtual machine: plan it, launch it, drive it. Knows no containerd.
//!
//! ```text
//! request -> plan (pure) -> launch: Planned -> VmStarted -> GuestConnected -> Ready
//!                                                                              |
//!                       Sandbox (handle) --calls--> driver task --rpc--> guest agent
//!                                        <--events--       <-- VM exit, guest events
//! ```
//! Imported by `shim` and `cli`; imports `config`, `protocol`, `settings`, never VMM code.
#![forbid(unsafe_code)]

pub mod debug;
mod driver;
mod engine;
mod file_server;
mod guest;
mod host;
mod launch;
pub mod metrics;
mod operator;
mod plan;
mod pod_host;
pub mod preflight;
mod request;
mod sandbox;
mod stdio;

pub use request::{
    ContainerRequest, ExecRequest, ProcessId, RootfsMount, SandboxRequest, StdioRequest,
};
pub use sandbox::{
    Created, Error, Event, Exit, LaunchReport, ProcessState, Sandbox, Stage, Stats, Status, Stdio,
};
