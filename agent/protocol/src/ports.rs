//! vsock addresses. The transport is Firecracker's: host AF_UNIX socket <-> guest AF_VSOCK port.

/// The guest's context id. Every VM has its own vsock device, so all can have the same.
pub const GUEST_CID: u32 = 3;
/// The guest's name for the host (VMADDR_CID_HOST, vsock(7)).
pub const HOST_CID: u32 = 2;

/// The agent listens here for ttrpc.
pub const AGENT: u32 = 1024;
/// The agent listens here for stdio streams; each begins with a [`crate::stream::Header`].
pub const STDIO: u32 = 1025;
/// The *host* listens here: the agent connects once when it serves, sends one byte
/// ([`READY_BYTE`]) and closes. The host need not poll a booting guest.
pub const READY: u32 = 1026;
/// The agent listens here for a person's questions (see [`crate::debug`]), if `Hello` told it to.
pub const DEBUG: u32 = 1027;

/// The byte that the agent sends on [`READY`].
pub const READY_BYTE: u8 = b'R';
