//! Copying between a process's pipes or terminal and the host's streams. One buffer each: what neither
//! side takes waits in the pipe, and the process with it.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use rustix::{
    io::{ioctl_fionbio, read, write},
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest, unix::AsyncFd},
    sync::watch,
    time::timeout,
};

use crate::listen::Stream;

/// Bytes per copy: as much as a pipe holds.
const BUFFER: usize = 64 << 10;
/// After CloseStdin, input that was sent before may still be on its way. It is taken until the stream has
/// been silent for so long; the lossless way to end input is the stream's own end.
const SILENCE: Duration = Duration::from_millis(200);

/// A pipe's end or a terminal's master, without blocking.
#[derive(Debug)]
pub(crate) struct End(AsyncFd<OwnedFd>);

impl End {
    /// `fd` must not share its open file description with a process that expects it to block.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        ioctl_fionbio(&fd, true)?;
        Ok(Self(crate::sys::watch(fd)?))
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Reads; 0 is the end.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self
            .0
            .async_io(Interest::READABLE, |fd| {
                read(fd, &mut *buffer).map_err(io::Error::from)
            })
            .await;
        match result {
            // A terminal's way to say that nobody has its other end open any more.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self
                .0
                .async_io(Interest::WRITABLE, |fd| {
                    write(fd, bytes).map_err(io::Error::from)
                })
                .await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A pipe for a process's input: (its end, ours).
pub(crate) fn input_pipe() -> io::Result<(OwnedFd, End)> {
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((theirs, End::new(ours)?))
}

/// A pipe for a process's output: (its end, ours).
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, End)> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((theirs, End::new(ours)?))
}

/// Output until its end. When the host no longer takes it, the rest is read and thrown away: as with
/// runc under containerd, whose shim keeps reading, a process neither stops nor gets SIGPIPE because its
/// reader went away.
pub(crate) async fn copy_out(from: Arc<End>, mut to: Box<dyn Stream>) {
    let mut buffer = vec![0; BUFFER];
    let mut taken = true;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..length).unwrap_or_default();
        if taken && to.write_all(bytes).await.is_err() {
            taken = false;
        }
    }
    // The host sees the end of the file; if it is gone there is nobody to tell.
    let _ = to.shutdown().await;
}

/// Input until its end: the stream's, `closed`'s, or the process's, which closed its own.
pub(crate) async fn copy_in(
    mut from: Box<dyn Stream>,
    to: Arc<End>,
    mut closed: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; BUFFER];
    let mut closing = false;
    loop {
        let length = if closing {
            match timeout(SILENCE, from.read(&mut buffer)).await {
                Ok(length) => length,
                Err(_) => break,
            }
        } else {
            tokio::select! {
                length = from.read(&mut buffer) => length,
                _ = closed.wait_for(|closed| *closed) => {
                    closing = true;
                    continue;
                }
            }
        };
        let Ok(length @ 1..) = length else { break };
        let bytes = buffer.get(..length).unwrap_or_default();
        if to.write_all(bytes).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
#[path = "pipes_tests.rs"]
mod tests;
