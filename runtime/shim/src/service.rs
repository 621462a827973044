//! containerd's task service: decodes a request, asks [`Tasks`], encodes the answer.
//!
//! The same messages are served under two names: `containerd.task.v2.Task` for containerd up to 2.2 and
//! `containerd.task.v3.Task` for later ones.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
        StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    protobuf::{
        Message,
        well_known_types::{any::Any, empty::Empty},
    },
    shim::oci::ProcessDetails,
    shim_async::{Task, create_task},
    ttrpc::{
        self, Code,
        asynchronous::{Service, TtrpcContext},
    },
};
use isopod_sandbox::ProcessId;
use serde::de::DeserializeOwned;

use crate::{
    bundle,
    convert::{self, rpc_error, status_error},
    io::Paths,
    logging::Log,
    options::Source,
    pod::Launch,
    stats,
    tasks::{Create, Exec, Tasks},
};

const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";

/// The service of one pod.
pub struct TaskService<L: Launch> {
    tasks: Arc<Tasks<L>>,
    log: Option<Arc<Log>>,
    debug: bool,
}

impl<L: Launch> TaskService<L> {
    /// Serves `tasks`. The log's level follows the settings of the first container, unless `debug`.
    pub fn new(tasks: Arc<Tasks<L>>, log: Option<Arc<Log>>, debug: bool) -> Self {
        Self { tasks, log, debug }
    }

    /// Both names' method tables.
    pub fn register(self) -> HashMap<String, Service> {
        let service = Arc::new(self);
        let mut services = create_task(service.clone());
        if let Some(v2) = create_task(service).remove(V3) {
            services.insert(V2.to_owned(), v2);
        }
        services
    }
}

fn id(container: String, exec: String) -> ProcessId {
    ProcessId { container, exec }
}

fn invalid(message: impl ToString) -> ttrpc::Error {
    status_error(Code::INVALID_ARGUMENT, message)
}

/// containerd wraps the runtime specification's objects as JSON in an `Any`.
fn json<T: DeserializeOwned>(any: Option<&Any>, what: &str) -> ttrpc::Result<T> {
    let any = any.ok_or_else(|| invalid(format!("{what} is missing")))?;
    bundle::parse_json(what, &any.value).map_err(invalid)
}

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl<L: Launch> Task for TaskService<L> {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> Answer<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            let text = "restoring a checkpoint is not supported";
            return Err(status_error(Code::UNIMPLEMENTED, text));
        }
        let settings = Source::from_any(request.options.as_ref())
            .and_then(|source| source.load())
            .map_err(invalid)?;
        if let Some(log) = self.log.as_ref().filter(|_| !self.debug) {
            log.set_level(settings.log_level);
        }
        let create = Create {
            rootfs: convert::rootfs(&request),
            id: request.id,
            bundle: request.bundle.into(),
            mounts: request.rootfs,
            paths: Paths {
                terminal: request.terminal,
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
            },
            settings,
        };
        let pid = self.tasks.create(create).await.map_err(rpc_error)?;
        Ok(CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        let id = id(request.id, request.exec_id);
        let pid = self.tasks.start(id).await.map_err(rpc_error)?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        let id = id(request.id, request.exec_id);
        let state = self.tasks.state(&id).map_err(rpc_error)?;
        Ok(StateResponse {
            id: id.container,
            exec_id: id.exec,
            bundle: state.bundle.display().to_string(),
            pid: state.pid,
            status: convert::status(state.status).into(),
            stdin: state.paths.stdin,
            stdout: state.paths.stdout,
            stderr: state.paths.stderr,
            terminal: state.paths.terminal,
            exit_status: state.exit.map_or(0, |exit| exit.code),
            exited_at: state.exit.map(|exit| convert::timestamp(exit.at)).into(),
            ..StateResponse::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let id = id(request.id, request.exec_id);
        let exit = self.tasks.wait(&id).await.map_err(rpc_error)?;
        Ok(WaitResponse {
            exit_status: exit.code,
            exited_at: Some(convert::timestamp(exit.at)).into(),
            ..WaitResponse::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        let id = id(request.id, request.exec_id);
        let deleted = self.tasks.delete(id).await.map_err(rpc_error)?;
        Ok(DeleteResponse {
            pid: deleted.pid,
            exit_status: deleted.exit.code,
            exited_at: Some(convert::timestamp(deleted.exit.at)).into(),
            ..DeleteResponse::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let id = id(request.id, request.exec_id);
        let killed = self.tasks.kill(id, request.signal, request.all).await;
        killed.map(|()| Empty::new()).map_err(rpc_error)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        let exec = Exec {
            process: json(request.spec.as_ref(), "the process to execute")?,
            id: id(request.id, request.exec_id),
            paths: Paths {
                terminal: request.terminal,
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
            },
        };
        if exec.id.exec.is_empty() {
            return Err(invalid("an exec needs an id"));
        }
        let added = self.tasks.exec(exec).await;
        added.map(|()| Empty::new()).map_err(rpc_error)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        let pids = self.tasks.pids(&request.id).await.map_err(rpc_error)?;
        let processes = pids.into_iter().map(|(pid, exec_id)| {
            let details = ProcessDetails {
                exec_id,
                ..ProcessDetails::default()
            };
            let info = (!details.exec_id.is_empty()).then(|| Any {
                type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
                value: details.write_to_bytes().unwrap_or_default(),
                ..Any::default()
            });
            ProcessInfo {
                pid,
                info: info.into(),
                ..ProcessInfo::default()
            }
        });
        Ok(PidsResponse {
            processes: processes.collect(),
            ..PidsResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        let files = self.tasks.stats(&request.id).await.map_err(rpc_error)?;
        Ok(StatsResponse {
            stats: Some(stats::pack(stats::Version::of_host(), &files)?).into(),
            ..StatsResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        let paused = self.tasks.pause(request.id).await;
        paused.map(|()| Empty::new()).map_err(rpc_error)
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        let resumed = self.tasks.resume(request.id).await;
        resumed.map(|()| Empty::new()).map_err(rpc_error)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        let resources = json(request.resources.as_ref(), "the resources to update")?;
        let updated = self.tasks.update(request.id, resources).await;
        updated.map(|()| Empty::new()).map_err(rpc_error)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let id = id(request.id, request.exec_id);
        let resized = self.tasks.resize(id, request.width, request.height).await;
        resized.map(|()| Empty::new()).map_err(rpc_error)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let id = id(request.id, request.exec_id);
        if request.stdin {
            self.tasks.close_input(&id).map_err(rpc_error)?;
        }
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        let text = "checkpoints are not supported";
        Err(status_error(Code::UNIMPLEMENTED, text))
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> Answer<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.tasks.connect().task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> Answer<Empty> {
        let ended = self.tasks.shutdown(request.now).await;
        ended.map(|()| Empty::new()).map_err(rpc_error)
    }
}
