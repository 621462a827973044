//! From a plan to a pod that takes requests, by consuming types. Each owns its undo: when a step
//! fails, what was made before it is removed, and the next type never exists.
//!
//! ```text
//! Planned --start--> VmStarted --connect--> GuestConnected --greet--> Ready
//!    |                   |                        |
//!    +--- on failure: processes ended, mounts and directory removed, record removed
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use isopod_protocol::ports;
use tokio::{io::AsyncReadExt, net::UnixListener, time::timeout};

use crate::{
    Error, LaunchReport, SandboxRequest, Stage,
    engine::{self, BackEnds, Choice},
    file_server,
    guest::{Guest, Introduction},
    host::{HostError, pod_dir, record::Record, spawner::Spawner},
    plan::{PodPlan, plan_pod},
    pod_host::PodHost,
};

/// A pod on paper.
pub(crate) struct Planned {
    plan: PodPlan,
    choice: Choice,
}

/// A pod whose machine runs.
pub(crate) struct VmStarted {
    host: PodHost,
    listener: UnixListener,
    progress: Progress,
}

/// A pod whose agent serves.
pub(crate) struct GuestConnected {
    host: PodHost,
    progress: Progress,
}

/// A pod that takes requests.
pub(crate) struct Ready {
    pub host: PodHost,
    pub guest: Arc<Guest>,
    pub report: LaunchReport,
}

/// What the report will tell.
struct Progress {
    engine: &'static str,
    why: String,
    stages: Vec<Stage>,
    last: Instant,
}

impl Progress {
    fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.stages.push(Stage {
            name,
            took: now.duration_since(self.last),
        });
        self.last = now;
    }
}

impl Planned {
    /// Plans a pod and looks at what it needs; makes nothing.
    pub fn new(request: &SandboxRequest) -> Result<Self, Error> {
        let plan = plan_pod(request)?;
        let choice = engine::choose(&plan.settings)?;
        choice.engine.check(&plan)?;
        let server = &plan.settings.paths.file_server;
        crate::host::artifact::check_program("file server", server, crate::host::artifact::REMEDY)
            .map_err(HostError::from)?;
        Ok(Self { plan, choice })
    }

    /// Makes the pod's directory and starts its processes.
    pub async fn start(self) -> Result<VmStarted, Error> {
        let Self { plan, choice } = self;
        tracing::info!(
            pod = plan.id,
            engine = choice.engine.name(),
            why = choice.why,
            "starting"
        );
        let progress = Progress {
            engine: choice.engine.name(),
            why: choice.why,
            stages: Vec::new(),
            last: Instant::now(),
        };
        let mut host = PodHost::new(plan)?;
        match start(&mut host, choice.engine.as_ref()).await {
            Ok(listener) => {
                let mut progress = progress;
                progress.done("VM start");
                Ok(VmStarted {
                    host,
                    listener,
                    progress,
                })
            }
            Err(error) => Err(host.abandon(error).await),
        }
    }
}

async fn start(host: &mut PodHost, engine: &dyn engine::Engine) -> Result<UnixListener, Error> {
    pod_dir::create(&host.plan.paths)?;
    host.make_group()?;
    let port = host.plan.paths.port(ports::READY);
    let listener = UnixListener::bind(&port).map_err(HostError::path("listen at", &port))?;
    let spawner = Spawner::new()?;
    let (lifeline, for_server) = lifeline()?;
    let for_engine = for_server
        .try_clone()
        .map_err(HostError::path("copy", "the lifeline"))?;
    host.hold(lifeline, spawner.clone());

    let (server, front_ends) = file_server::start(&host.plan, for_server, &spawner).await?;
    host.add_file_server(server)?;
    let back_ends = BackEnds {
        fs: front_ends.fs,
        vsock: front_ends.vsock,
        lifeline: for_engine,
    };
    let machine = engine.start(&host.plan, back_ends, &spawner).await?;
    host.add_machine(machine)?;
    host.started().await?;
    Ok(listener)
}

/// Our end, and the end whose reader learns of ours.
fn lifeline() -> Result<(std::os::fd::OwnedFd, std::os::fd::OwnedFd), Error> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC;
    let (reader, writer) =
        rustix::pipe::pipe_with(flags).map_err(HostError::path("make", "a pipe"))?;
    Ok((writer, reader))
}

impl VmStarted {
    /// Waits until the agent says that it serves.
    pub async fn connect(self) -> Result<GuestConnected, Error> {
        let Self {
            mut host,
            listener,
            mut progress,
        } = self;
        let limit = host.plan.settings.timeouts.boot();
        let waited = tokio::select! {
            ready = timeout(limit, ready(listener)) => match ready {
                Ok(()) => Ok(()),
                Err(_) => Err(host.explain(&format!("the agent did not serve within {limit:?}"))),
            },
            reason = host.exited() => Err(reason),
        };
        // The guest needs no way to the host any more.
        let port = host.plan.paths.port(ports::READY);
        if let Err(error) = std::fs::remove_file(&port) {
            tracing::debug!(%error, path = %port.display(), "remove the ready socket");
        }
        match waited {
            Ok(()) => {
                progress.done("kernel to agent");
                Ok(GuestConnected { host, progress })
            }
            Err(reason) => {
                let error = Error::VmGone(format!("the guest did not start: {reason}"));
                Err(host.abandon(error).await)
            }
        }
    }
}

/// From the agent's connection to its byte. On a busy host the guest may not run for seconds in between;
/// who connects and stays silent harms only its own pod.
const READY_BYTE_WAIT: Duration = Duration::from_secs(30);

/// Returns when the agent has connected and said so.
async fn ready(listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let byte = timeout(READY_BYTE_WAIT, stream.read_u8()).await;
                if matches!(byte, Ok(Ok(ports::READY_BYTE))) {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "accept the agent's connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

impl GuestConnected {
    /// Greets the agent.
    pub async fn greet(self) -> Result<Ready, Error> {
        let Self {
            mut host,
            mut progress,
        } = self;
        let plan = &host.plan;
        let introduction = Introduction {
            hostname: plan.hostname.clone(),
            debug_console: plan.settings.debug.console,
        };
        let limit = plan.settings.timeouts.request();
        let connect = Guest::connect(plan.paths.vsock(), limit, introduction);
        let connected = tokio::select! {
            connected = connect => connected.map_err(Error::from),
            reason = host.exited() => Err(Error::VmGone(reason)),
        };
        let (guest, greeting) = match connected {
            Ok(connected) => connected,
            Err(error) => return Err(host.abandon(error).await),
        };
        progress.done("agent ready");
        let report = LaunchReport {
            engine: progress.engine,
            why: progress.why,
            kernel_release: greeting.kernel_release,
            stages: progress.stages,
            processes: host.processes(),
        };
        let stages = report.stages.iter();
        let stages: Vec<String> = stages
            .map(|stage| format!("{}: {} ms", stage.name, stage.took.as_millis()))
            .collect();
        tracing::info!(
            engine = report.engine,
            why = report.why,
            kernel = report.kernel_release,
            agent = greeting.agent_version,
            stages = stages.join(", "),
            "pod is ready"
        );
        Ok(Ready {
            host,
            guest: Arc::new(guest),
            report,
        })
    }
}

/// Removes all that the record in `bundle` names, then runs the hooks that the container is owed; see
/// [`crate::Sandbox::clean_up`].
pub(crate) async fn clean_up(bundle: &std::path::Path) -> Result<(), Error> {
    let removed = match Record::read(bundle)? {
        Some(record) => crate::pod_host::remove_recorded(bundle, record).await,
        None => Ok(()),
    };
    // What is left of the pod is no reason to leave the hooks' work, too.
    crate::host::owed::settle_noted(bundle).await?;
    removed
}
