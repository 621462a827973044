//! For tests: a machine without a process, and an agent behind a real socket and a real protocol.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use isopod_protocol::{
    PROTOCOL_VERSION,
    agent::{self, event::Kind},
    agent_ttrpc::{Agent, create_agent},
    ports,
    stream::{HEADER_LEN, Header},
};
use protobuf::MessageField;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};
use ttrpc::asynchronous::{Server, TtrpcContext, transport::Listener};

use crate::{
    LaunchReport, Sandbox, SandboxRequest,
    engine::{EngineError, Lent, Machine, Spare, console::Console},
    guest::{Guest, Introduction},
    host::{HostError, pod_dir, record::RecordedProcess},
    launch::Ready,
    plan::plan_pod,
    pod_host::PodHost,
};

/// A pod whose guest is this struct.
pub(super) struct FakePod {
    pub sandbox: Sandbox,
    pub bundle: tempfile::TempDir,
    pub dir: std::path::PathBuf,
    /// Send a reason here and the machine has ended.
    pub machine: watch::Sender<Option<String>>,
    pub agent: Arc<FakeAgent>,
    /// The stdio streams that arrived: (id, stream).
    pub streams: mpsc::Receiver<(u64, UnixStream)>,
}

/// How the agent behaves, and what it heard.
pub(super) struct FakeAgent {
    pub heard: Mutex<Vec<String>>,
    events: tokio::sync::Mutex<mpsc::Receiver<agent::Event>>,
    tell: mpsc::Sender<agent::Event>,
    sequence: Mutex<u64>,
    /// Answers to create, start and kill are given once this is true.
    pub answers: watch::Sender<bool>,
    /// Creates are refused with this.
    pub refusal: Mutex<Option<ttrpc::Status>>,
    /// Processors that the guest can bring online, or why it cannot.
    pub processors: Mutex<Result<u32, ttrpc::Status>>,
    /// Why the engine grants no processors.
    pub granted: Mutex<Option<String>>,
    /// Processors that the guest does not take offline.
    pub kept: Mutex<u32>,
    /// What its wall clock shows: nanoseconds since the Unix epoch.
    pub clock: Mutex<i64>,
    machine: watch::Sender<Option<String>>,
}

type Answer<T> = ttrpc::Result<T>;

impl FakeAgent {
    fn hear(&self, call: impl Into<String>) {
        self.heard.lock().unwrap().push(call.into());
    }

    async fn permitted(&self) {
        let mut answers = self.answers.subscribe();
        answers.wait_for(|answers| *answers).await.unwrap();
    }

    /// Tells the host that a process ended.
    pub async fn exit(&self, container: &str, exec: &str, code: u32) {
        let exit = agent::ExitStatus {
            pid: 42,
            code,
            ..Default::default()
        };
        let exited = agent::ProcessExited {
            exec_id: exec.into(),
            exit: MessageField::some(exit),
            ..Default::default()
        };
        let sequence = {
            let mut sequence = self.sequence.lock().unwrap();
            *sequence += 1;
            *sequence
        };
        let event = agent::Event {
            sequence,
            container_id: container.into(),
            kind: Some(Kind::Exited(exited)),
            ..Default::default()
        };
        self.tell.send(event).await.unwrap();
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn hello(
        &self,
        _: &TtrpcContext,
        _: agent::HelloRequest,
    ) -> Answer<agent::HelloResponse> {
        Ok(agent::HelloResponse {
            protocol_version: PROTOCOL_VERSION,
            kernel_release: "6.12-fake".into(),
            ..Default::default()
        })
    }

    async fn sync_clock(
        &self,
        _: &TtrpcContext,
        request: agent::SyncClockRequest,
    ) -> Answer<agent::SyncClockResponse> {
        let mut clock = self.clock.lock().unwrap();
        if let Some(offset) = request.offset.as_ref() {
            *clock -= offset.ahead_ns;
        }
        Ok(agent::SyncClockResponse {
            realtime_ns: *clock,
            ..Default::default()
        })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: agent::CreateRequest,
    ) -> Answer<agent::ProcessResponse> {
        self.hear(format!("create {}", request.container_id));
        self.permitted().await;
        if let Some(status) = self.refusal.lock().unwrap().clone() {
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(agent::ProcessResponse {
            pid: 42,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: agent::ExecRequest) -> Answer<agent::Empty> {
        self.hear(format!("exec {}", request.exec_id));
        Ok(agent::Empty::default())
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: agent::ProcessRequest,
    ) -> Answer<agent::ProcessResponse> {
        self.hear(format!("start {}{}", request.container_id, request.exec_id));
        self.permitted().await;
        Ok(agent::ProcessResponse {
            pid: 43,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: agent::KillRequest) -> Answer<agent::Empty> {
        self.hear(format!("kill {} {}", request.container_id, request.signal));
        self.permitted().await;
        self.exit(
            &request.container_id,
            &request.exec_id,
            128 + request.signal,
        )
        .await;
        Ok(agent::Empty::default())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: agent::ProcessRequest,
    ) -> Answer<agent::ExitStatus> {
        self.hear(format!("delete {}", request.container_id));
        Ok(agent::ExitStatus::default())
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        _: agent::EventsRequest,
    ) -> Answer<agent::EventsResponse> {
        let event = self.events.lock().await.recv().await;
        Ok(agent::EventsResponse {
            events: event.into_iter().collect(),
            ..Default::default()
        })
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: agent::UpdateRequest,
    ) -> Answer<agent::Empty> {
        self.hear(format!("update {}", request.container_id));
        if let Some(status) = self.refusal.lock().unwrap().clone() {
            return Err(ttrpc::Error::RpcStatus(status));
        }
        Ok(agent::Empty::default())
    }

    async fn set_size(
        &self,
        _: &TtrpcContext,
        request: agent::SetSizeRequest,
    ) -> Answer<agent::SetSizeResponse> {
        let bytes = |ranges: &[agent::MemoryRange]| {
            let bytes: u64 = ranges.iter().map(|range| range.bytes).sum();
            bytes >> 20
        };
        let (used, unused) = (bytes(&request.used), bytes(&request.unused));
        self.hear(format!("size {} +{used} -{unused}", request.cpus));
        match self.processors.lock().unwrap().clone() {
            Ok(most) => Ok(agent::SetSizeResponse {
                cpus: request.cpus.min(most).max(*self.kept.lock().unwrap()),
                ..Default::default()
            }),
            Err(status) => Err(ttrpc::Error::RpcStatus(status)),
        }
    }

    async fn shutdown(&self, _: &TtrpcContext, _: agent::Empty) -> Answer<agent::Empty> {
        self.hear("shutdown");
        self.machine
            .send_replace(Some("the guest powered off".into()));
        Ok(agent::Empty::default())
    }
}

/// Memory as QEMU's, processors as the monitor's.
struct FakeSpare(Arc<FakeAgent>);

#[async_trait]
impl Spare for FakeSpare {
    fn memory_mib(&self) -> u64 {
        2048
    }

    async fn lend(&self, mib: u64) -> Result<Lent, EngineError> {
        let (used, unused) = (0..mib << 20, mib << 20..2048 << 20);
        Ok(Lent {
            used: vec![used],
            unused: vec![unused],
        })
    }

    async fn grant(&self, cpus: u32) -> Result<(), EngineError> {
        self.0.hear(format!("grant {cpus}"));
        match self.0.granted.lock().unwrap().clone() {
            Some(why) => Err(EngineError::Processors { cpus, why }),
            None => Ok(()),
        }
    }
}

struct FakeMachine {
    ended: watch::Receiver<Option<String>>,
    console: Console,
    agent: Arc<FakeAgent>,
}

#[async_trait]
impl Machine for FakeMachine {
    fn process(&self) -> RecordedProcess {
        RecordedProcess {
            name: "fake".into(),
            pid: 0,
            start_time: 0,
        }
    }

    fn console(&self) -> &Console {
        &self.console
    }

    async fn running(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn spare(&self) -> Box<dyn Spare> {
        Box::new(FakeSpare(Arc::clone(&self.agent)))
    }

    async fn exited(&mut self) -> String {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_default()
    }

    async fn end(&mut self, _: Duration) -> Result<(), HostError> {
        Ok(())
    }
}

/// Starts a pod with mounts and directories of its own below `state`.
pub(super) async fn pod(state: &Path) -> FakePod {
    let bundle = tempfile::tempdir_in(state).unwrap();
    std::fs::create_dir(bundle.path().join("rootfs")).unwrap();
    let mut settings = isopod_settings::Settings::default();
    settings.paths.state = state.join("isopod");
    settings.timeouts.shutdown = 1;
    settings.timeouts.request = 2;
    let request = SandboxRequest {
        namespace: "test".into(),
        id: "pod".into(),
        bundle: bundle.path().to_owned(),
        settings,
        spec: oci_spec::runtime::Spec::default(),
    };
    let plan = plan_pod(&request).unwrap();
    let (paths, dir) = (plan.paths.clone(), plan.paths.dir.clone());
    let mut host = PodHost::new(plan).unwrap();
    pod_dir::create(&paths).unwrap();
    let (machine, ended) = watch::channel(None);
    let (tell, events) = mpsc::channel(16);
    let agent = Arc::new(FakeAgent {
        heard: Mutex::default(),
        events: tokio::sync::Mutex::new(events),
        tell,
        sequence: Mutex::default(),
        answers: watch::Sender::new(true),
        refusal: Mutex::default(),
        processors: Mutex::new(Ok(64)),
        granted: Mutex::default(),
        kept: Mutex::default(),
        clock: Mutex::default(),
        machine: machine.clone(),
    });
    let fake = FakeMachine {
        ended,
        console: Console::default(),
        agent: Arc::clone(&agent),
    };
    host.add_machine(Box::new(fake)).unwrap();
    let streams = serve(UnixListener::bind(paths.vsock()).unwrap(), agent.clone()).await;
    let limit = Duration::from_secs(2);
    let introduction = Introduction {
        hostname: String::new(),
        debug_console: false,
    };
    let (guest, greeting) = Guest::connect(paths.vsock(), limit, introduction)
        .await
        .unwrap();
    let report = LaunchReport {
        engine: "fake",
        why: String::new(),
        kernel_release: greeting.kernel_release,
        stages: Vec::new(),
        processes: Vec::new(),
    };
    let sandbox = Sandbox::drive(Ready {
        host,
        guest: Arc::new(guest),
        report,
    });
    FakePod {
        sandbox,
        bundle,
        dir,
        machine,
        agent,
        streams,
    }
}

/// Plays isopod-fs's socket and the guest's two ports behind it.
async fn serve(listener: UnixListener, agent: Arc<FakeAgent>) -> mpsc::Receiver<(u64, UnixStream)> {
    let (connections, received) = mpsc::channel::<std::io::Result<UnixStream>>(16);
    let (arrived, streams) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut line = Vec::new();
            while !line.ends_with(b"\n") {
                line.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"OK 1\n").await.unwrap();
            if line == format!("CONNECT {}\n", ports::AGENT).into_bytes() {
                let _ = connections.send(Ok(stream)).await;
            } else {
                let mut header = [0; HEADER_LEN];
                stream.read_exact(&mut header).await.unwrap();
                let _ = arrived
                    .send((Header::decode(&header).unwrap().id, stream))
                    .await;
            }
        }
    });
    let incoming = futures::stream::unfold(received, |mut received| async {
        received
            .recv()
            .await
            .map(|connection| (connection, received))
    });
    let mut server = Server::new()
        .add_listener(Listener::new(incoming))
        .register_service(create_agent(agent));
    server.start().await.unwrap();
    // It serves for as long as the runtime lives.
    std::mem::forget(server);
    streams
}
