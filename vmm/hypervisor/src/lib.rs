//! What this machine's KVM can do. The virtual machine monitor's vCPUs will live here.
//!
//! Place in the flow: `cli` asks it for `isopod check`. Imports `memory`. `unsafe` is allowed here
//! because KVM takes guest memory as an address of this process.

mod probe;

pub use probe::{Hypervisor, ProbeError, Supervisor};
