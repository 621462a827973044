//! The vsock device between a guest driver that writes rings in memory and real AF_UNIX sockets.

mod rig;
mod socket;

mod connecting;
mod data;
mod ending;
mod hostile;
mod lifecycle;
mod scale;
