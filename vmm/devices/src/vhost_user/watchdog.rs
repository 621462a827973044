//! Ends conversations with processes that do not answer.
//!
//! The protocol library waits for an answer as long as its socket stands, and takes a socket's time-out
//! for a reason to try again. So another thread shuts the socket down when an act has lasted too long,
//! which wakes whoever waits. One thread watches all connections of a process; it sleeps unless an act is
//! under way.
//!
//! ```text
//!   device's thread:  Leash::bound() ──set──> [deadline] ──drop──> [none]
//!   watchdog's thread:                 sleeps until the next one, then shutdown(2)
//! ```

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::net::Shutdown;

/// How long an act with a process of this machine may take: messages of some bytes, answered without
/// waiting for disks or networks. Generous, as the machine may be overloaded.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Watches connections; its thread ends with the last of its clones and of the connections' leashes.
#[derive(Clone)]
pub struct Watchdog(Arc<Owners>);

struct Owners(Arc<Shared>);

struct Shared {
    patience: Duration,
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Default)]
struct Watched {
    connections: BTreeMap<u64, Connection>,
    next: u64,
    over: bool,
}

struct Connection {
    socket: OwnedFd,
    deadline: Option<Instant>,
    ended: bool,
}

impl Watchdog {
    /// Starts the thread, which does `prepare` first: the place for its system call filter. An act may
    /// take `patience`.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(patience: Duration, prepare: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            patience,
            watched: Mutex::default(),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                prepare();
                theirs.watch();
            })?;
        Ok(Self(Arc::new(Owners(shared))))
    }

    /// Watches a connection from now on.
    pub(super) fn leash(&self, socket: OwnedFd) -> Leash {
        let mut watched = self.0.0.lock();
        let id = watched.next;
        watched.next += 1;
        let connection = Connection {
            socket,
            deadline: None,
            ended: false,
        };
        watched.connections.insert(id, connection);
        Leash {
            owners: Arc::clone(&self.0),
            id,
        }
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let mut watched = self.lock();
        while !watched.over {
            let now = Instant::now();
            for connection in watched.connections.values_mut() {
                if connection.deadline.is_some_and(|deadline| deadline <= now) {
                    connection.deadline = None;
                    connection.ended = true;
                    // What is shut down already has ended as well.
                    let _ = rustix::net::shutdown(&connection.socket, Shutdown::Both);
                }
            }
            let deadlines = watched.connections.values().filter_map(|c| c.deadline);
            watched = match deadlines.min() {
                None => self
                    .changed
                    .wait(watched)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(next) => {
                    let wait = self.changed.wait_timeout(watched, next - now);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// One watched connection.
pub(super) struct Leash {
    owners: Arc<Owners>,
    id: u64,
}

impl Leash {
    /// The connection is shut down unless what is returned is dropped in time.
    pub(super) fn bound(&self) -> Bound<'_> {
        self.set(Some(Instant::now() + self.patience()));
        Bound(self)
    }

    /// How long an act may take.
    pub(super) fn patience(&self) -> Duration {
        self.owners.0.patience
    }

    /// Whether the patience with the other side has ended.
    pub(super) fn ended(&self) -> bool {
        let watched = self.owners.0.lock();
        watched.connections.get(&self.id).is_some_and(|c| c.ended)
    }

    fn set(&self, deadline: Option<Instant>) {
        if let Some(connection) = self.owners.0.lock().connections.get_mut(&self.id) {
            connection.deadline = deadline;
        }
        // A thread that waits for what is no more looks again by itself.
        if deadline.is_some() {
            self.owners.0.changed.notify_all();
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.owners.0.lock().connections.remove(&self.id);
    }
}

/// An act that may not last.
pub(super) struct Bound<'a>(&'a Leash);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn only_who_lasts_too_long_is_cut_off() {
        let watchdog = Watchdog::start(Duration::from_millis(50), || ()).unwrap();
        let (slow, _slow_end) = UnixStream::pair().unwrap();
        let (quick, _quick_end) = UnixStream::pair().unwrap();
        let slow_leash = watchdog.leash(slow.try_clone().unwrap().into());
        let quick_leash = watchdog.leash(quick.try_clone().unwrap().into());
        drop(quick_leash.bound());
        let bound = slow_leash.bound();
        // Nobody writes: only the shutdown ends it.
        assert_eq!((&slow).read(&mut [0; 1]).unwrap(), 0);
        drop(bound);
        assert!(slow_leash.ended());
        assert!(!quick_leash.ended());
        quick.set_nonblocking(true).unwrap();
        let open = (&quick).read(&mut [0; 1]).unwrap_err();
        assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_thread_ends_with_its_owners() {
        let (ends, ended) = std::sync::mpsc::channel::<()>();
        let watchdog = Watchdog::start(PATIENCE, move || {
            // Dropped with the thread.
            thread_local!(static ENDS: std::cell::RefCell<Option<std::sync::mpsc::Sender<()>>> =
                const { std::cell::RefCell::new(None) });
            ENDS.set(Some(ends));
        })
        .unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let leash = watchdog.leash(socket.into());
        drop(watchdog);
        let still = ended.recv_timeout(Duration::from_millis(20));
        assert_eq!(still, Err(std::sync::mpsc::RecvTimeoutError::Timeout));
        drop(leash);
        let end = ended.recv_timeout(Duration::from_secs(60));
        assert_eq!(end, Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    }
}
