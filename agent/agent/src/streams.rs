//! Standard streams on their way from the host: parked by id until a process claims them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use isopod_protocol::{
    limits,
    stream::{HEADER_LEN, Header},
};
use tokio::{io::AsyncReadExt as _, sync::oneshot, time::timeout};

use crate::{
    listen::{Listener, Stream},
    log,
    pod::Pod,
};

/// A header is one packet; who takes longer is not our host.
const HEADER_WAIT: Duration = Duration::from_secs(5);

/// Why a declared stream is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("stream {0} did not arrive")]
    Late(u64),
    #[error("stream {0} is claimed twice")]
    Twice(u64),
}

enum Slot {
    /// It came first.
    Parked(Box<dyn Stream>),
    /// The claim came first.
    Awaited(oneshot::Sender<Box<dyn Stream>>),
}

/// The parking place.
#[derive(Default)]
pub(crate) struct Streams {
    slots: Mutex<HashMap<u64, Slot>>,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream has introduced itself. A second one of the same id, or one too many, is closed.
    fn arrive(&self, id: u64, stream: Box<dyn Stream>) {
        let mut slots = self.lock();
        match slots.remove(&id) {
            Some(Slot::Awaited(claim)) => {
                // Whoever waited may have given up: then it is closed.
                let _ = claim.send(stream);
            }
            Some(parked @ Slot::Parked(_)) => {
                slots.insert(id, parked);
                log::warning(&format!("stream {id} came twice"));
            }
            None if slots.len() >= limits::PARKED_STREAMS => {
                log::warning(&format!("too many unclaimed streams: {id} is closed"));
            }
            None => {
                slots.insert(id, Slot::Parked(stream));
            }
        }
    }

    /// Takes the stream `id`, waiting for it for a while.
    pub(crate) async fn claim(&self, id: u64) -> Result<Box<dyn Stream>, StreamError> {
        let arrival = {
            let mut slots = self.lock();
            match slots.remove(&id) {
                Some(Slot::Parked(stream)) => return Ok(stream),
                Some(awaited @ Slot::Awaited(_)) => {
                    slots.insert(id, awaited);
                    return Err(StreamError::Twice(id));
                }
                None => {
                    let (claim, arrival) = oneshot::channel();
                    slots.insert(id, Slot::Awaited(claim));
                    arrival
                }
            }
        };
        if let Ok(Ok(stream)) = timeout(limits::STREAM_WAIT, arrival).await {
            return Ok(stream);
        }
        self.lock().remove(&id);
        Err(StreamError::Late(id))
    }

    /// Closes streams that nobody will claim.
    pub(crate) fn give_up(&self, ids: impl IntoIterator<Item = u64>) {
        let mut slots = self.lock();
        for id in ids {
            slots.remove(&id);
        }
    }
}

/// Takes in connections for ever.
pub(crate) async fn accept(listener: Listener, pod: Arc<Pod>) {
    loop {
        let mut stream = listener.accept().await;
        let pod = Arc::clone(&pod);
        tokio::spawn(async move {
            let mut bytes = [0; HEADER_LEN];
            match timeout(HEADER_WAIT, stream.read_exact(&mut bytes)).await {
                Ok(Ok(_)) => {}
                _ => return,
            }
            match Header::decode(&bytes) {
                Some(header) => pod.streams.arrive(header.id, stream),
                None => log::warning("a stream introduced itself wrongly"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

    fn pair() -> (DuplexStream, Box<dyn Stream>) {
        let (ours, theirs) = duplex(64);
        (ours, Box::new(theirs))
    }

    async fn same(mut ours: DuplexStream, mut theirs: Box<dyn Stream>) -> bool {
        ours.write_all(b"x").await.is_ok() && theirs.read_u8().await.is_ok_and(|b| b == b'x')
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_come_before_its_claim() {
        let streams = Streams::default();
        let (ours, theirs) = pair();
        streams.arrive(7, theirs);
        assert!(same(ours, streams.claim(7).await.expect("there")).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_may_come_before_its_stream() {
        let streams = Arc::new(Streams::default());
        let claim = tokio::spawn({
            let streams = Arc::clone(&streams);
            async move { streams.claim(7).await }
        });
        tokio::task::yield_now().await;
        let (ours, theirs) = pair();
        streams.arrive(7, theirs);
        let claimed = claim.await.expect("no panic").expect("came");
        assert!(same(ours, claimed).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_never_comes_is_given_up() {
        let streams = Streams::default();
        assert_eq!(streams.claim(7).await.err(), Some(StreamError::Late(7)));
        assert!(streams.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_of_two_with_one_id_wins() {
        let streams = Streams::default();
        let (first, theirs) = pair();
        streams.arrive(7, theirs);
        streams.arrive(7, pair().1);
        assert!(same(first, streams.claim(7).await.expect("there")).await);
    }

    #[tokio::test(start_paused = true)]
    async fn parking_is_bounded() {
        let streams = Streams::default();
        for id in 1..=limits::PARKED_STREAMS as u64 + 10 {
            streams.arrive(id, pair().1);
        }
        assert_eq!(streams.lock().len(), limits::PARKED_STREAMS);
    }
}
