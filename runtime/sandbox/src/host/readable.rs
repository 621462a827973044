//! Waiting for a descriptor that is no socket: a pidfd, a timer.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor whose readiness for reading can be waited for. It stays open as long as it is watched.
pub(crate) struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Watches a descriptor; must be called within a runtime.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // Deprecated because an `AsRawFd` in general may name a descriptor that it does not own; an
        // `OwnedFd` does, and the replacement is `unsafe`.
        #[expect(deprecated)]
        let watched = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self(watched))
    }

    pub fn get(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Waits until it is ready and asks `act`, which answers nothing when it is not ready after all.
    /// Never returns once the runtime is ending.
    pub async fn when_ready<T>(&self, mut act: impl FnMut() -> Option<T>) -> T {
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return std::future::pending().await;
            };
            match act() {
                Some(answer) => return answer,
                None => ready.clear_ready(),
            }
        }
    }
}
