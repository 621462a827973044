//! The monitor's socket of one pod, served: see [`crate::operator`].
//!
//! ```text
//!          `debug`: take out who was there, a stream: one end as a parcel to the monitor, one to him
//!   free ──────────────────────────────────────────────────────────────────────────────> lent
//!     ^───────────────── taken out <── his connection closes ─────────────────────────────┘ others: TAKEN
//! ```
//!
//! Neither he nor the jailed monitor has the other's socket, but the two ends of a nameless pair: neither
//! learns who the other is, a descriptor that one sends closes where the other reads, and what he types is
//! not copied by the shim.

use std::{
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream as Pair,
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use isopod_control::{
    monitor::{AttachRequest, BackEnd, DetachRequest, Empty},
    monitor_ttrpc::MonitorClient,
    parcel,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, SemaphorePermit},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use ttrpc::context;

use crate::{
    metrics::Metrics,
    operator::{OperatorError, Wish, tell, wish},
};

/// The slot, as the monitor calls it.
const SLOT: &str = "console";
/// What the monitor does without asking the guest.
const ANSWER: Duration = Duration::from_secs(5);
/// Connections at a time; one more waits to be accepted.
const OPERATORS: usize = 16;
/// After the host had no descriptor for one.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until it is dropped.
pub(super) struct Operators(JoinHandle<()>);

impl Operators {
    /// Serves who comes to `listener`.
    pub fn start(listener: UnixListener, desk: Desk) -> Self {
        Self(tokio::spawn(serve(listener, Arc::new(desk))))
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(listener: UnixListener, desk: Arc<Desk>) {
    // Dropped with this task, they end.
    let mut operators = JoinSet::new();
    loop {
        if operators.len() >= OPERATORS {
            operators.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = Arc::clone(&desk);
                operators.spawn(async move { desk.attend(stream).await });
            }
            Err(error) => {
                tracing::debug!(%error, "accept an operator");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while operators.try_join_next().is_some() {}
    }
}

/// What operators can be given.
pub(super) struct Desk {
    control: MonitorClient,
    /// Descriptors on their way to the monitor; `None`: its machine has no console.
    parcels: Option<OwnedFd>,
    number: AtomicU64,
    /// The interactive port.
    port: Semaphore,
}

/// The port is lent.
struct Lent<'a> {
    _place: SemaphorePermit<'a>,
    stream: Pair,
}

impl Desk {
    pub fn new(control: MonitorClient, parcels: Option<OwnedFd>) -> Self {
        Self {
            control,
            parcels,
            number: AtomicU64::new(1),
            port: Semaphore::new(1),
        }
    }

    async fn attend(&self, mut operator: UnixStream) {
        let attended = async {
            match wish(&mut operator).await? {
                Some(Wish::Debug) => self.debug(&mut operator).await,
                Some(Wish::Metrics) => self.metrics(&mut operator).await,
                None => Err(OperatorError::Line),
            }
        };
        if let Err(error) = attended.await {
            tracing::debug!(%error, "attend to an operator");
            // He may be gone, or not read: behind an OK it would be no JSON.
            let _ = tell(&operator, Err(&error));
        }
    }

    async fn debug(&self, operator: &mut UnixStream) -> Result<(), OperatorError> {
        let Lent { _place, stream } = self.lend().await?;
        let told = tell(operator, Ok(Some(stream.as_fd())));
        drop(stream);
        if told.is_ok() {
            // Until he leaves; he has no more to say here.
            let _ = operator.read(&mut [0]).await;
        }
        self.take_out().await;
        Ok(())
    }

    async fn metrics(&self, operator: &mut UnixStream) -> Result<(), OperatorError> {
        let metrics = self.control.metrics(within(), &Empty::new()).await;
        let metrics = Metrics::from(metrics.map_err(refused)?);
        let json = serde_json::to_vec(&metrics).map_err(failed)?;
        tell(operator, Ok(None))?;
        // A reader that stands still is not waited for.
        let told = timeout(ANSWER, operator.write_all(&json)).await;
        told.map_err(|_| OperatorError::TimedOut)??;
        Ok(())
    }

    async fn lend(&self) -> Result<Lent<'_>, OperatorError> {
        let parcels = self.parcels.as_ref().ok_or(OperatorError::Off)?;
        let _place = self.port.try_acquire().map_err(|_| OperatorError::Taken)?;
        // One whose leaving the monitor was too busy to hear of.
        self.take_out().await;
        let (stream, theirs) = Pair::pair()?;
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        parcel::send(parcels, number, &[theirs.as_fd()]).map_err(failed)?;
        let mut request = AttachRequest::new();
        request.slot = SLOT.to_owned();
        request.kind = BackEnd::STREAM.into();
        request.parcel = number;
        let attached = self.control.attach(within(), &request).await;
        attached.map_err(refused)?;
        Ok(Lent { _place, stream })
    }

    /// Takes out who is at the port, if anybody is.
    async fn take_out(&self) {
        let mut request = DetachRequest::new();
        request.slot = SLOT.to_owned();
        if let Err(error) = self.control.detach(within(), &request).await {
            tracing::trace!(%error, "take an operator out of the console");
        }
    }
}

/// In the monitor's words.
fn refused(error: ttrpc::Error) -> OperatorError {
    match error {
        ttrpc::Error::RpcStatus(status) => OperatorError::Failed(status.message),
        other => failed(other),
    }
}

fn failed(error: impl std::error::Error) -> OperatorError {
    OperatorError::Failed(error.to_string())
}

fn within() -> context::Context {
    context::with_duration(ANSWER)
}

#[cfg(test)]
#[path = "operators_tests.rs"]
mod tests;
