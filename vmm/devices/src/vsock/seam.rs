//! The seam between the protocol, which makes no system call, and the host.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
};

use isopod_memory::GuestSlice;

/// Ports from here on cannot be connected to: epoll's tokens use them, and the last one is no port.
pub const FIRST_RESERVED_PORT: u32 = 0xffff_fff0;

/// The host's end of a connection: a non-blocking stream.
pub trait HostStream {
    /// Writes once from guest memory.
    ///
    /// # Errors
    /// As `write(2)`.
    fn send(&self, pieces: &[GuestSlice<'_>]) -> io::Result<usize>;
    /// Writes once.
    ///
    /// # Errors
    /// As `write(2)`.
    fn send_bytes(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Reads once into guest memory.
    ///
    /// # Errors
    /// As `read(2)`.
    fn receive(&self, pieces: &[GuestSlice<'_>]) -> io::Result<usize>;
    /// Ends a direction; failing only means that it had ended.
    fn shutdown(&self, how: Shutdown);
}

/// Names a connection: the guest's context id never changes and the host's is always 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The host's port.
    pub host_port: u32,
    /// The guest's port.
    pub guest_port: u32,
}

/// What is ready on the host's stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Bytes, an end of stream or an error can be read.
    pub readable: bool,
    /// Bytes can be written.
    pub writable: bool,
    /// Both directions have ended.
    pub hung_up: bool,
}

/// How an attempt to reach a host program failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Its listen queue is full: worth another try.
    Busy,
    /// Nobody listens.
    Refused,
}

/// What the muxer needs of the host.
pub trait Host {
    /// The host's end of a connection.
    type Stream: HostStream;

    /// Connects, without blocking, to the program that serves `port`.
    ///
    /// # Errors
    /// When nobody does, or not now.
    fn connect(&mut self, port: u32) -> Result<Self::Stream, ConnectError>;

    /// Has readiness of `stream` reported under `token` (edge-triggered, and at once if it is ready
    /// already); of room only if `room`.
    ///
    /// # Errors
    /// The system's.
    fn watch(&mut self, token: Token, stream: &Self::Stream, room: bool) -> io::Result<()>;

    /// Changes what [`watch`](Self::watch) began; reports at once what is ready already.
    ///
    /// # Errors
    /// The system's.
    fn rewatch(&mut self, token: Token, stream: &Self::Stream, room: bool) -> io::Result<()>;
}

/// Names what became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    /// A connection of the table.
    Connection(Key),
    /// A connection that the guest has forgotten.
    Detached(u32),
}
