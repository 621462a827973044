//! The virtio-vsock device (virtio 1.2, 5.10): a guest's AF_VSOCK ports joined to the host's AF_UNIX
//! sockets, wholly in user space. Host side as in Firecracker:
//!
//! - a host program connects to the device's listening socket and sends `CONNECT <port>\n`; once the
//!   guest has accepted it gets `OK <host port>\n`, and from then on the stream is the connection;
//! - a guest that connects to host port P reaches the AF_UNIX socket `<connect_dir>/vsock_P`, or is
//!   reset if nobody listens there. In a process that has no directory, one end of the connection is sent
//!   over the channel that the port was given ([`VsockDevice::with_channels`]).
//!
//! ```text
//!            guest                         device                              host
//!   AF_VSOCK   <--  tx queue 1 -->  packet -> muxer -> connection  <---->  AF_UNIX stream
//!              <--  rx queue 0 --     (pure: credit, states)   host (epoll, listener, timer)
//!              <--  event queue 2
//! ```
//!
//! # For a transport
//!
//! One thread owns the [`VsockDevice`]. It watches [the device's descriptor](VsockDevice::as_fd) for
//! reading, beside the queues' notifications, and calls [`VsockDevice::handle`] with all three
//! queues when either fires. The answer says which queues' interrupt to raise. Nothing blocks, no
//! other thread runs; timers are in the same descriptor.
//!
//! | file | job |
//! |---|---|
//! | `interface.rs` | configuration, state, errors, what a transport passes and gets |
//! | `device.rs` | queues to packets and back, state, reset |
//! | `muxer.rs` | the table of connections, whose turn it is |
//! | `connection.rs` | one connection's life; `connection/outbound.rs`: its packets for the guest |
//! | `waiting.rs` | the guest's connections to programs that are busy |
//! | `seam.rs` | what all these need of the host |
//! | `credit.rs` | flow control, and the buffer that it bounds |
//! | `host.rs` | epoll, timer, connecting out |
//! | `callers.rs` | listener, and host programs that are yet to say where they want to |
//! | `packet.rs` | the header on the wire |
//! | `transport.rs` | the device behind the monitor's virtio-mmio |

mod callers;
mod connection;
mod credit;
mod device;
mod host;
mod interface;
mod muxer;
pub mod packet;
mod seam;
mod transport;
mod waiting;

pub use device::VsockDevice;
pub use interface::{
    Cause, Signals, VsockConfig, VsockError, VsockQueueCounters, VsockQueues, VsockState,
};
pub use muxer::VsockCounters;
