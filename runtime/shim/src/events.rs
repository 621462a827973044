//! Events to containerd: queued in order, sent one at a time, kept while containerd is away.
//!
//! ```text
//! task code --publish--> queue (bounded) --sender--> containerd's ttrpc events service
//!                                            ^  |
//!                                            +--+ connection lost: wait, connect again, send again
//! ```
//! An event may arrive twice (the answer was lost), never out of order. When the queue is full, an
//! exit outlives everything else.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use containerd_shim_protos::{
    api::ForwardRequest,
    events::task::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
        TaskResumed, TaskStart,
    },
    protobuf::{Message, well_known_types::any::Any},
    shim::event::Envelope,
    shim_async::{Client, EventsClient},
    topics,
    ttrpc::{self, context},
};
use tokio::{sync::Notify, time};

use crate::convert;

/// Events kept while containerd is away; some 200 bytes each.
const CAPACITY: usize = 2048;
/// One event may take so long before the connection counts as lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between attempts grow up to this.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// A message that containerd knows by a topic and a type name.
pub trait TaskEvent: Message {
    /// Where subscribers look for it.
    const TOPIC: &'static str;
    /// Its protobuf name, in containerd's notation for `Any.type_url`: without a prefix.
    const TYPE: &'static str;
    /// Kept longest when the queue is full.
    const IS_EXIT: bool = false;
}

macro_rules! task_events {
    ($($message:ident $topic:ident $name:literal $($exit:ident)?;)*) => {$(
        impl TaskEvent for $message {
            const TOPIC: &'static str = topics::$topic;
            const TYPE: &'static str = $name;
            $(const $exit: bool = true;)?
        }
    )*};
}

task_events! {
    TaskCreate TASK_CREATE_EVENT_TOPIC "containerd.events.TaskCreate";
    TaskStart TASK_START_EVENT_TOPIC "containerd.events.TaskStart";
    TaskExecAdded TASK_EXEC_ADDED_EVENT_TOPIC "containerd.events.TaskExecAdded";
    TaskExecStarted TASK_EXEC_STARTED_EVENT_TOPIC "containerd.events.TaskExecStarted";
    TaskExit TASK_EXIT_EVENT_TOPIC "containerd.events.TaskExit" IS_EXIT;
    TaskDelete TASK_DELETE_EVENT_TOPIC "containerd.events.TaskDelete";
    TaskOOM TASK_OOM_EVENT_TOPIC "containerd.events.TaskOOM";
    TaskPaused TASK_PAUSED_EVENT_TOPIC "containerd.events.TaskPaused";
    TaskResumed TASK_RESUMED_EVENT_TOPIC "containerd.events.TaskResumed";
}

struct Queued {
    envelope: Envelope,
    is_exit: bool,
}

/// The queue. Publishing never waits.
pub struct Events {
    namespace: String,
    queue: Mutex<VecDeque<Queued>>,
    changed: Notify,
    emptied: Notify,
}

impl Events {
    /// An empty queue for containers of `namespace`.
    pub fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            queue: Mutex::default(),
            changed: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// Appends an event.
    pub fn publish<E: TaskEvent>(&self, event: &E) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(topic = E::TOPIC, %error, "an event cannot be encoded");
                return;
            }
        };
        let any = Any {
            type_url: E::TYPE.to_owned(),
            value,
            ..Any::default()
        };
        let envelope = Envelope {
            timestamp: Some(convert::timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(any).into(),
            ..Envelope::default()
        };
        let mut queue = self.queue();
        if queue.len() >= CAPACITY {
            // Never the first: it is perhaps being sent.
            let victim = (1..queue.len()).find(|at| queue.get(*at).is_some_and(|e| !e.is_exit));
            let victim = queue.remove(victim.unwrap_or(1));
            let topic = victim.map(|event| event.envelope.topic).unwrap_or_default();
            tracing::error!(topic, "an event is lost: containerd is away for too long");
        }
        queue.push_back(Queued {
            envelope,
            is_exit: E::IS_EXIT,
        });
        drop(queue);
        self.changed.notify_one();
    }

    /// Waits until everything is sent, but not longer than `patience`.
    pub async fn flush(&self, patience: Duration) {
        let flushed = async {
            loop {
                let emptied = self.emptied.notified();
                if self.queue().is_empty() {
                    return;
                }
                emptied.await;
            }
        };
        if time::timeout(patience, flushed).await.is_err() {
            let lost = self.queue().len();
            tracing::warn!(lost, "events are lost: containerd did not take them");
        }
    }

    /// Sends for ever. `address` is containerd's ttrpc socket.
    pub async fn send_all(&self, address: &str) {
        let address = if address.contains("://") {
            address.to_owned()
        } else {
            format!("unix://{address}")
        };
        let mut pause = Duration::ZERO;
        let mut client = None;
        loop {
            let Some(envelope) = self.queue().front().map(|event| event.envelope.clone()) else {
                self.emptied.notify_waiters();
                self.changed.notified().await;
                continue;
            };
            let connected = client.is_some();
            match forward(&mut client, &address, envelope).await {
                Ok(()) => pause = Duration::ZERO,
                // containerd understood and refused: asking again changes nothing.
                Err(ttrpc::Error::RpcStatus(status)) if !is_passing(status.code()) => {
                    tracing::error!(reason = status.message, "containerd refused an event");
                }
                // containerd was restarted since the last event.
                Err(_) if connected => {
                    client = None;
                    continue;
                }
                Err(error) => {
                    if pause == Duration::ZERO {
                        tracing::warn!(%error, "containerd takes no events; trying on");
                    }
                    client = None;
                    pause = (pause * 2).clamp(Duration::from_millis(20), MAX_PAUSE);
                    time::sleep(pause).await;
                    continue;
                }
            }
            self.queue().pop_front();
        }
    }

    /// What waits to be sent.
    #[cfg(test)]
    pub fn queued(&self) -> Vec<Envelope> {
        let queue = self.queue();
        queue.iter().map(|event| event.envelope.clone()).collect()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Queued>> {
        self.queue
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }
}

/// A containerd that is just going down answers so.
fn is_passing(code: ttrpc::Code) -> bool {
    use ttrpc::Code;
    matches!(
        code,
        Code::UNAVAILABLE | Code::CANCELLED | Code::DEADLINE_EXCEEDED | Code::ABORTED
    )
}

async fn forward(
    client: &mut Option<EventsClient>,
    address: &str,
    envelope: Envelope,
) -> ttrpc::Result<()> {
    let client = match client {
        Some(client) => client,
        None => client.insert(EventsClient::new(Client::connect(address).await?)),
    };
    let request = ForwardRequest {
        envelope: Some(envelope).into(),
        ..ForwardRequest::default()
    };
    client
        .forward(context::with_duration(SEND_TIMEOUT), &request)
        .await?;
    Ok(())
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
