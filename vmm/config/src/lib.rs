//! A virtual machine as plain data: what to build, never how.
//!
//! Place in the flow: `sandbox` plans it, an engine reads it (QEMU's command line, our monitor's
//! configuration as JSON), `isopod-fs` gets its own part. No implementation lives here, and no
//! sibling is imported.
#![forbid(unsafe_code)]

mod file_server;
mod machine;
mod monitor;
mod slots;
mod snapshot;

pub use file_server::{FileServerConfig, VsockBackendConfig};
pub use machine::{CpuConfig, FsConfig, KernelConfig, MemoryConfig, VmConfig, VsockConfig};
pub use monitor::{
    MonitorConfig, MonitorDescriptors, ProtocolConfig, RootConfig, VsockHostDescriptors,
};
pub use slots::{DiskSlotConfig, NetSlotConfig, RateConfig, SlotsConfig};
pub use snapshot::{SnapshotDescriptors, StateDescriptors};
