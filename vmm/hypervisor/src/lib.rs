//! KVM: what this machine's can do, a virtual machine on it, its vCPUs and the loop that runs them.
//!
//! Place in the flow: `machine` assembles VMs from these parts, `cli` asks the probe for
//! `isopod check`. Imports `memory`. `unsafe` is allowed here because KVM takes guest memory as
//! addresses of this process, and shares a page with it per vCPU.
//!
//! | module | what |
//! |---|---|
//! | [`probe`] | who runs a guest's supervisor mode here, measured |
//! | [`vm`] | memory slots, interrupt controllers, doorbells |
//! | [`hotplug`] | memory that comes and goes while the guest runs |
//! | [`cpuid`], [`msrs`] | what a guest is told about its processor, as tables with reasons |
//! | [`Entry`] | how the first processor enters a kernel, by boot protocol |
//! | [`vcpu`] | one processor: its registers, one step of its life |
//! | [`emulate`] | instructions that KVM hands back because its emulator lacks them |
//! | [`runner`] | the threads of all vCPUs as one state machine: running, paused, stopped |
//! | [`state`] | what of all this is saved and restored |

pub mod cpuid;
mod emulate;
mod entry;
mod error;
mod hotplug;
mod kick;
mod mapping;
mod msrs;
mod probe;
pub mod runner;
pub mod state;
mod vcpu;
mod vm;

#[cfg(feature = "testing")]
pub use emulate::testing;
pub use entry::{Entry, Protocol};
pub use error::HypervisorError;
pub use hotplug::{CHUNK, HotplugMemory};
pub use mapping::FileMapping;
pub use probe::{Hypervisor, ProbeError, Supervisor};
pub use vcpu::{Bus, Flow, Vcpu, VcpuCounters, VcpuError};
pub use vm::{Doorbell, Vm};
