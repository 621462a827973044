//! The calls of `proto/agent.proto`, one method each.
//!
//! A call runs in a task of its own: a host that drops the connection in the middle leaves no process
//! half made.

use std::{fs, future::Future, io, sync::Arc};

use async_trait::async_trait;
use isopod_container::{
    spec::{parse_process, parse_resources, parse_spec},
    state::State,
};
use isopod_protocol::{
    PROTOCOL_VERSION,
    agent::{
        ContainerRequest, CreateRequest, Empty, EventsRequest, EventsResponse, ExecRequest,
        ExitStatus, HelloRequest, HelloResponse, KillRequest, PidsResponse, ProcessInfo,
        ProcessRequest, ProcessResponse, ResizeRequest, SetSizeRequest, SetSizeResponse,
        StateResponse, StatsResponse, Status, SyncClockRequest, SyncClockResponse, UpdateRequest,
    },
    agent_ttrpc::Agent,
    limits,
};
use rustix::termios::{Winsize, tcsetwinsize};
use ttrpc::r#async::TtrpcContext;

use crate::{
    Place, boot, clock, debug,
    fault::{Fault, act},
    lifecycle,
    pod::Pod,
    run, shutdown,
    size::System,
    stdio::Wiring,
};

/// The service.
pub(crate) struct Service {
    pod: Arc<Pod>,
    place: Place,
    system: Arc<System>,
    /// CLOCK_BOOTTIME, nanoseconds.
    began: u64,
    ready: u64,
    debug: debug::Switch,
}

type Answer<T> = ttrpc::Result<T>;

/// Runs `work` to its end, whatever becomes of the caller.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|e| Err(act("finish a call", e)))
}

fn pid_of(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

impl Service {
    pub(crate) fn new(pod: Arc<Pod>, place: Place, began: u64) -> Self {
        Self {
            pod,
            system: Arc::new(System::new(&place.system)),
            place,
            began,
            ready: clock::since_boot(),
            debug: debug::Switch::default(),
        }
    }

    fn greet(&self, request: &HelloRequest) -> Result<HelloResponse, Fault> {
        if request.protocol_version != PROTOCOL_VERSION {
            return Err(Fault::Precondition(format!(
                "host and guest do not fit together: protocol {} and {PROTOCOL_VERSION}",
                request.protocol_version
            )));
        }
        let system = rustix::system::uname();
        if self.place.sockets.is_none() {
            if !request.hostname.is_empty() {
                nix::unistd::sethostname(&request.hostname)
                    .map_err(|e| act("set the host name", e))?;
            }
            if !request.shared_tag.is_empty() {
                boot::mount_shared(&request.shared_tag).map_err(|e| {
                    act(
                        format!("mount the shared directory {:?}", request.shared_tag),
                        e,
                    )
                })?;
            }
        }
        if request.debug_console {
            let on = self.debug.turn_on(&self.place, &self.pod);
            on.map_err(|e| act("listen for the debug console", e))?;
        }
        let mut response = HelloResponse::new();
        response.protocol_version = PROTOCOL_VERSION;
        response.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        response.kernel_release = system.release().to_string_lossy().into_owned();
        response.init_ns = self.began;
        response.ready_ns = self.ready;
        response.security_modules = fs::read_to_string("/sys/kernel/security/lsm")
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(response)
    }
}

#[async_trait]
impl Agent for Service {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> Answer<HelloResponse> {
        Ok(self.greet(&request)?)
    }

    async fn sync_clock(
        &self,
        _: &TtrpcContext,
        request: SyncClockRequest,
    ) -> Answer<SyncClockResponse> {
        // Outside a guest the clock is the host's own.
        if let (Some(offset), None) = (request.offset.as_ref(), &self.place.sockets) {
            clock::correct(offset).map_err(|e| act("correct the clock", e))?;
        }
        let mut response = SyncClockResponse::new();
        response.realtime_ns = clock::now();
        Ok(response)
    }

    async fn create(&self, _: &TtrpcContext, request: CreateRequest) -> Answer<ProcessResponse> {
        if request.spec_json.len() > limits::SPEC_LEN {
            return Err(Fault::Argument("config.json: it is too long".to_owned()).into());
        }
        let spec = parse_spec(&request.spec_json).map_err(Fault::from)?;
        let wiring = Wiring::new(&request.stdio)?;
        let pod = Arc::clone(&self.pod);
        let pid = finish(run::create(pod, request.container_id, spec, wiring)).await?;
        let mut response = ProcessResponse::new();
        response.pid = pid_of(pid);
        Ok(response)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> Answer<Empty> {
        if request.process_json.len() > limits::SPEC_LEN {
            return Err(Fault::Argument("process: it is too long".to_owned()).into());
        }
        let spec = parse_process(&request.process_json).map_err(Fault::from)?;
        let wiring = Wiring::new(&request.stdio)?;
        run::register_exec(
            &self.pod,
            &request.container_id,
            &request.exec_id,
            spec,
            wiring,
        )?;
        Ok(Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<ProcessResponse> {
        let container = self.pod.container(&request.container_id)?;
        let pid = if request.exec_id.is_empty() {
            finish(run::start_container(container)).await?
        } else {
            let exec = self.pod.exec(&request.container_id, &request.exec_id)?;
            finish(run::start_exec(Arc::clone(&self.pod), container, exec)).await?
        };
        let mut response = ProcessResponse::new();
        response.pid = pid_of(pid);
        Ok(response)
    }

    async fn state(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<StateResponse> {
        let process = self.pod.process(&request.container_id, &request.exec_id)?;
        let mut response = StateResponse::new();
        response.pid = pid_of(process.pid());
        response.status = match process.state() {
            State::Created => Status::CREATED,
            State::Running => Status::RUNNING,
            State::Paused => Status::PAUSED,
            State::Stopped => Status::STOPPED,
        }
        .into();
        response.exit = process.exit().map(|exit| exit.message()).into();
        Ok(response)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let signal = i32::try_from(request.signal)
            .ok()
            .filter(|signal| (1..=64).contains(signal))
            .ok_or_else(|| {
                Fault::Argument(format!("signal: {} is not a signal", request.signal))
            })?;
        if request.all {
            lifecycle::signal_all(&self.pod, &request.container_id, signal)?;
            return Ok(Empty::new());
        }
        let process = self.pod.process(&request.container_id, &request.exec_id)?;
        let state = process.state();
        if !state.can_kill() {
            return Err(Fault::Finished.into());
        }
        if process.pid() == 0 {
            return Err(Fault::Precondition(
                "cannot kill a process that was not started".to_owned(),
            )
            .into());
        }
        match process.signal(signal) {
            Ok(()) => Ok(Empty::new()),
            Err(nix::errno::Errno::ESRCH) => Err(Fault::Finished.into()),
            Err(e) => Err(act("send the signal", e).into()),
        }
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<ExitStatus> {
        let pod = Arc::clone(&self.pod);
        Ok(finish(lifecycle::delete(
            pod,
            request.container_id,
            request.exec_id,
        ))
        .await?)
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> Answer<Empty> {
        let process = self.pod.process(&request.container_id, &request.exec_id)?;
        let cells = |value: u32, field: &str| {
            u16::try_from(value)
                .map_err(|_| Fault::Argument(format!("{field}: {value} is too many")))
        };
        let size = Winsize {
            ws_row: cells(request.height, "height")?,
            ws_col: cells(request.width, "width")?,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let Some(terminal) = process.terminal() else {
            let state = process.state();
            state
                .require(state.can_kill(), "resize", process.subject())
                .map_err(Fault::from)?;
            return Err(Fault::Precondition("the process has no terminal".to_owned()).into());
        };
        tcsetwinsize(terminal.fd(), size)
            .map_err(|e| act("resize the terminal", io::Error::from(e)))?;
        Ok(Empty::new())
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: ProcessRequest) -> Answer<Empty> {
        self.pod
            .process(&request.container_id, &request.exec_id)?
            .close_input();
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<PidsResponse> {
        let container = self.pod.container(&request.container_id)?;
        let pids = container.cgroup.pids().map_err(Fault::from)?;
        let execs: Vec<_> = container.execs().values().cloned().collect();
        let mut response = PidsResponse::new();
        for pid in pids {
            let exec = execs
                .iter()
                .find(|exec| pid_of(exec.process.pid()) == pid)
                .map(|exec| exec.process.exec.clone());
            let mut info = ProcessInfo::new();
            info.pid = pid;
            info.exec_id = exec.unwrap_or_default();
            response.processes.push(info);
        }
        Ok(response)
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<StatsResponse> {
        let container = self.pod.container(&request.container_id)?;
        let mut response = StatsResponse::new();
        for file in limits::STAT_FILES {
            if let Some(content) = container.cgroup.read(file).map_err(Fault::from)? {
                response.files.insert((*file).to_owned(), content);
            }
        }
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<Empty> {
        let pod = Arc::clone(&self.pod);
        finish(lifecycle::freeze(pod, request.container_id, true)).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> Answer<Empty> {
        let pod = Arc::clone(&self.pod);
        finish(lifecycle::freeze(pod, request.container_id, false)).await?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> Answer<Empty> {
        let resources = parse_resources(&request.resources_json).map_err(Fault::from)?;
        let container = self.pod.container(&request.container_id)?;
        let state = container.init.state();
        state
            .require(state.can_update(), "update", "container")
            .map_err(Fault::from)?;
        container.update(&resources)?;
        Ok(Empty::new())
    }

    async fn events(&self, _: &TtrpcContext, request: EventsRequest) -> Answer<EventsResponse> {
        let mut response = EventsResponse::new();
        response.events = self.pod.events.after(request.after).await;
        Ok(response)
    }

    async fn set_size(&self, _: &TtrpcContext, request: SetSizeRequest) -> Answer<SetSizeResponse> {
        Ok(finish(Arc::clone(&self.system).set_size(request)).await?)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> Answer<Empty> {
        let pod = Arc::clone(&self.pod);
        let place = self.place.clone();
        tokio::spawn(async move { shutdown::end(&pod, &place).await });
        Ok(Empty::new())
    }
}
