use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use containerd_shim_protos::{
    protobuf::well_known_types::empty::Empty,
    shim_async::{Events as EventsService, create_events},
    ttrpc::asynchronous::{Server, TtrpcContext},
};

use super::*;

/// containerd's end.
#[derive(Default)]
struct Receiver {
    got: Mutex<Vec<Envelope>>,
    refuse: Option<&'static str>,
}

#[async_trait]
impl EventsService for Receiver {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        if self.refuse.is_some_and(|topic| topic == envelope.topic) {
            return Err(convert::status_error(ttrpc::Code::INVALID_ARGUMENT, "no"));
        }
        self.got.lock().expect("unpoisoned").push(envelope);
        Ok(Empty::new())
    }
}

impl Receiver {
    fn topics(&self) -> Vec<String> {
        let got = self.got.lock().expect("unpoisoned");
        got.iter().map(|envelope| envelope.topic.clone()).collect()
    }
}

async fn serve(socket: &Path, receiver: &Arc<Receiver>) -> Server {
    let _ = std::fs::remove_file(socket);
    let mut server = Server::new()
        .bind(&format!("unix://{}", socket.display()))
        .expect("binds")
        .register_service(create_events(receiver.clone()));
    server.start().await.expect("starts");
    server
}

fn exit(pid: u32) -> TaskExit {
    TaskExit {
        container_id: "c".into(),
        pid,
        ..TaskExit::default()
    }
}

fn sender(events: &Arc<Events>, socket: &Path) -> tokio::task::JoinHandle<()> {
    let (events, address) = (events.clone(), socket.display().to_string());
    tokio::spawn(async move { events.send_all(&address).await })
}

#[tokio::test]
async fn events_arrive_in_order_with_topic_type_and_namespace() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let receiver = Arc::new(Receiver::default());
    let _server = serve(&socket, &receiver).await;
    let events = Arc::new(Events::new("ns"));
    let task = sender(&events, &socket);
    events.publish(&TaskCreate::default());
    events.publish(&TaskStart::default());
    events.publish(&exit(7));
    events.flush(Duration::from_secs(10)).await;
    task.abort();
    assert_eq!(
        receiver.topics(),
        ["/tasks/create", "/tasks/start", "/tasks/exit"]
    );
    let got = receiver.got.lock().expect("unpoisoned");
    let last = got.last().expect("three");
    assert_eq!(last.namespace, "ns");
    assert_eq!(last.event.type_url, "containerd.events.TaskExit");
    let decoded = TaskExit::parse_from_bytes(&last.event.value).expect("decodes");
    assert_eq!(decoded.pid, 7);
}

#[tokio::test]
async fn events_outlive_containerd() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let events = Arc::new(Events::new("ns"));
    let task = sender(&events, &socket);
    events.publish(&TaskStart::default());
    time::sleep(Duration::from_millis(50)).await;

    let receiver = Arc::new(Receiver::default());
    let mut server = serve(&socket, &receiver).await;
    events.flush(Duration::from_secs(10)).await;
    assert_eq!(receiver.topics(), ["/tasks/start"]);

    server.shutdown().await.expect("stops");
    drop(server);
    std::fs::remove_file(&socket).expect("removed");
    events.publish(&exit(1));
    events.publish(&TaskDelete::default());
    events.flush(Duration::from_millis(100)).await;
    let receiver = Arc::new(Receiver::default());
    let _server = serve(&socket, &receiver).await;
    events.flush(Duration::from_secs(10)).await;
    task.abort();
    assert_eq!(receiver.topics(), ["/tasks/exit", "/tasks/delete"]);
}

#[tokio::test]
async fn a_refused_event_does_not_stop_the_next() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let receiver = Arc::new(Receiver {
        refuse: Some("/tasks/start"),
        ..Receiver::default()
    });
    let _server = serve(&socket, &receiver).await;
    let events = Arc::new(Events::new("ns"));
    let task = sender(&events, &socket);
    events.publish(&TaskStart::default());
    events.publish(&exit(1));
    events.flush(Duration::from_secs(10)).await;
    task.abort();
    assert_eq!(receiver.topics(), ["/tasks/exit"]);
}

#[test]
fn a_full_queue_keeps_exits_and_their_order() {
    let events = Events::new("ns");
    for pid in 0..10 {
        events.publish(&exit(pid));
    }
    for _ in 0..CAPACITY * 2 {
        events.publish(&TaskOOM::default());
    }
    events.publish(&exit(10));
    let queue = events.queue();
    assert_eq!(queue.len(), CAPACITY);
    let pids: Vec<u32> = queue
        .iter()
        .filter(|event| event.is_exit)
        .filter_map(|event| TaskExit::parse_from_bytes(&event.envelope.event.value).ok())
        .map(|exit| exit.pid)
        .collect();
    assert_eq!(pids, (0..=10).collect::<Vec<_>>());
}
