//! A virtual machine put together: where everything lies in the guest's address space, how a kernel is
//! entered, what answers its accesses, and the machine's life from boot to end.
//!
//! Place in the flow: `vmm` builds a [`Machine`] from its configuration. Imports `hypervisor`, `virtio`,
//! `memory`; nothing but `vmm` imports it.
//!
//! ```text
//!   Builder::new ──attach devices, show files──> Builder::boot ──> Machine
//!                                                                    │ resume, pause, save, metrics
//!                                                                    └ stop ──> End
//! ```
#![forbid(unsafe_code)]

mod boot;
mod bus;
mod clock;
mod command_line;
pub mod layout;
mod machine;
mod mp_table;
mod ram;
mod serial;

pub use boot::{BootError, BootProtocol};
pub use bus::MmioDevice;
pub use command_line::{CommandLineError, Host};
pub use isopod_hypervisor::{CHUNK, HotplugMemory, runner::End};
/// The hold on a device that [`Builder::attach`] gives, and how it fails.
pub use isopod_virtio::{Control, WorkerGone};
pub use machine::{
    Builder, Kernel, Machine, MachineConfig, MachineError, MachineMetrics, MachineState, Prepare,
    Region, Sharing,
};
pub use ram::RamError;
