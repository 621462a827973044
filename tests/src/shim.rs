//! A shim without containerd in between: started as containerd starts one, and asked over its socket.
//!
//! ```text
//! Shim::start(bed, id, spec): bundle + `SHIM start` -> the address that it prints
//!   Caller: one connection. call() asks and waits; send() asks and does not, so that the connection can
//!           be dropped in the middle; wait for the answer with answer()
//! ```
//! `ctr` hides what a shim answers behind what containerd makes of it, and asks only what makes sense.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
pub use containerd_shim_protos::{
    api,
    protobuf::{Message, well_known_types::empty::Empty},
    ttrpc::Code,
};
use containerd_shim_protos::{
    protobuf::{CodedOutputStream, well_known_types::any::Any},
    ttrpc::proto::{MESSAGE_HEADER_LENGTH, MessageHeader, Request, Response},
};
use serde_json::{Value, json};

use crate::{Bed, Runtime, process};

/// containerd 1.6's name of the service, which every shim here has.
const SERVICE: &str = "containerd.task.v2.Task";
/// How long a shim may think. A first container boots a machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// No answer is longer.
const LONGEST: u32 = 4 << 20;

/// A running shim.
pub struct Shim<'b> {
    bed: &'b Bed,
    runtime: Runtime,
    socket: PathBuf,
}

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What containerd makes its own error of.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl<'b> Shim<'b> {
    /// Starts the shim of the bed's runtime for a first bundle.
    pub fn start(bed: &'b Bed, id: &str, spec: &Value) -> Result<Self> {
        Self::of(bed, bed.runtime, id, spec)
    }

    /// Starts a runtime's shim.
    pub fn of(bed: &'b Bed, runtime: Runtime, id: &str, spec: &Value) -> Result<Self> {
        let bundle = write_bundle(bed, id, spec)?;
        follow_log(bed, &bundle)?;
        let program = format!("containerd-shim-{}-v2", runtime.name());
        let path = bed.machine.path_variable();
        let found = path.split(':').map(|dir| Path::new(dir).join(&program));
        let found = found.into_iter().find(|file| file.is_file());
        let socket = bed.containerd().socket();
        let containerd = bed.machine.program("containerd").context("containerd")?;
        let mut command = Command::new(found.with_context(|| format!("{program} in {path}"))?);
        command
            .args(["-namespace", &bed.namespace, "-id", id, "-address"])
            .arg(&socket)
            .arg("-publish-binary")
            .arg(containerd)
            .arg("start")
            .current_dir(&bundle)
            .env("PATH", &path)
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", socket.display()))
            .env("GRPC_ADDRESS", &socket)
            .stdin(Stdio::null());
        let options = options(bed, runtime)
            .map(|any| any.write_to_bytes())
            .transpose()?;
        let printed = process::run(&mut command, options, PATIENCE)?.ok()?.out();
        let socket = printed.trim().strip_prefix("unix://");
        let socket = socket.with_context(|| format!("no address in {printed:?}"))?;
        Ok(Self {
            bed,
            runtime,
            socket: socket.into(),
        })
    }

    /// The shim that containerd started for a container, or for its pod's first.
    pub fn existing(bed: &'b Bed, id: &str) -> Result<Self> {
        let file = bed.containerd().bundle(&bed.namespace, id).join("address");
        let text = fs::read_to_string(&file).with_context(|| format!("read {file:?}"))?;
        let socket = text.trim().strip_prefix("unix://");
        let socket = socket.with_context(|| format!("no address in {text:?}"))?;
        Ok(Self {
            bed,
            runtime: bed.runtime,
            socket: socket.into(),
        })
    }

    /// One more connection.
    pub fn caller(&self) -> Result<Caller> {
        let stream = UnixStream::connect(&self.socket)
            .with_context(|| format!("connect to {:?}", self.socket))?;
        Ok(Caller { stream, next: 1 })
    }

    /// Asks the shim to end, which has no container any more, and waits for it.
    pub fn shut_down(&self, id: &str) -> Result<()> {
        let request = api::ShutdownRequest {
            id: id.to_owned(),
            ..api::ShutdownRequest::default()
        };
        // It answers, or is gone before it could.
        let _ = self.caller()?.call::<Empty>("Shutdown", &request);
        self.gone()
    }

    /// Waits until nobody serves any more.
    pub fn gone(&self) -> Result<()> {
        process::eventually("the shim ends", PATIENCE, || {
            Ok(UnixStream::connect(&self.socket).is_err().then_some(()))
        })
    }

    /// A request to create a container of a bundle, without streams.
    pub fn creation(&self, id: &str, spec: &Value) -> Result<api::CreateTaskRequest> {
        Ok(api::CreateTaskRequest {
            id: id.to_owned(),
            bundle: write_bundle(self.bed, id, spec)?.display().to_string(),
            options: options(self.bed, self.runtime).into(),
            ..api::CreateTaskRequest::default()
        })
    }
}

/// One connection; closed when dropped.
pub struct Caller {
    stream: UnixStream,
    next: u32,
}

impl Caller {
    /// Asks and waits. The outer error is the test's, the inner one the shim's.
    pub fn call<A: Message>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<Result<A, Refusal>> {
        self.send(method, request.write_to_bytes()?)?;
        let answer = self.answer(PATIENCE)?;
        answer.with_context(|| format!("{method} is not answered within {PATIENCE:?}"))
    }

    /// Asks, and fails the case unless it succeeds.
    pub fn ask<A: Message>(&mut self, method: &str, request: &impl Message) -> Result<A> {
        let answer = self.call(method, request)?;
        answer.map_err(|refusal| anyhow::anyhow!("{method}: {refusal:?}"))
    }

    /// Asks only, with an encoded request.
    pub fn send(&mut self, method: &str, payload: Vec<u8>) -> Result<()> {
        let bytes = Request {
            service: SERVICE.to_owned(),
            method: method.to_owned(),
            payload,
            ..Request::default()
        }
        .write_to_bytes()?;
        let mut frame: Vec<u8> =
            MessageHeader::new_request(self.next, bytes.len().try_into()?).into();
        frame.extend(bytes);
        // A client's streams have odd numbers.
        self.next += 2;
        self.stream.write_all(&frame).context("send a request")
    }

    /// The answer to the last request; `None` when there is none within `limit`.
    pub fn answer<A: Message>(&mut self, limit: Duration) -> Result<Option<Result<A, Refusal>>> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut head = [0; MESSAGE_HEADER_LENGTH];
        match self.stream.read_exact(&mut head) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            read => read.context("read an answer")?,
        }
        let head = MessageHeader::from(head);
        ensure!(head.length <= LONGEST, "an answer of {} bytes", head.length);
        ensure!(head.stream_id + 2 == self.next, "an answer to {head:?}");
        let mut bytes = vec![0; head.length.try_into()?];
        self.stream.set_read_timeout(Some(PATIENCE))?;
        self.stream
            .read_exact(&mut bytes)
            .context("read an answer")?;
        let response = Response::parse_from_bytes(&bytes)?;
        let status = response.status();
        if status.code() != Code::OK {
            return Ok(Some(Err(Refusal {
                code: status.code(),
                message: status.message.clone(),
            })));
        }
        Ok(Some(Ok(A::parse_from_bytes(&response.payload)?)))
    }

    /// A process's end, once it comes.
    pub fn wait(&mut self, id: &str, exec: &str) -> Result<u32> {
        let request = api::WaitRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..api::WaitRequest::default()
        };
        let ended: api::WaitResponse = self.ask("Wait", &request)?;
        Ok(ended.exit_status)
    }

    /// Starts a created process.
    pub fn start(&mut self, id: &str, exec: &str) -> Result<()> {
        let request = api::StartRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..api::StartRequest::default()
        };
        self.ask::<Empty>("Start", &request).map(drop)
    }

    /// Adds a process to a container.
    pub fn exec(&mut self, id: &str, exec: &str, arguments: &[&str]) -> Result<()> {
        let process = json!({ "cwd": "/", "args": arguments, "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 } });
        let request = api::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            spec: Some(json_any("Process", &process)).into(),
            ..api::ExecProcessRequest::default()
        };
        self.ask::<Empty>("Exec", &request).map(drop)
    }

    /// Frees a process that has ended, or never began; answers its code.
    pub fn delete(&mut self, id: &str, exec: &str) -> Result<u32> {
        let request = api::DeleteRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..api::DeleteRequest::default()
        };
        let deleted: api::DeleteResponse = self.ask("Delete", &request)?;
        Ok(deleted.exit_status)
    }

    /// Kills a container's init and deletes the container.
    pub fn end(&mut self, id: &str) -> Result<()> {
        let kill = api::KillRequest {
            id: id.to_owned(),
            signal: 9,
            ..api::KillRequest::default()
        };
        self.ask::<Empty>("Kill", &kill)?;
        self.wait(id, "")?;
        self.delete(id, "").map(drop)
    }

    /// A process's status, or the code of the refusal.
    pub fn status(&mut self, id: &str, exec: &str) -> Result<Result<api::Status, Code>> {
        let request = api::StateRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..api::StateRequest::default()
        };
        let answer: Result<api::StateResponse, Refusal> = self.call("State", &request)?;
        Ok(match answer {
            Ok(state) => Ok(state.status.enum_value_or_default()),
            Err(refusal) => Err(refusal.code),
        })
    }

    /// Waits until a process has this status.
    pub fn becomes(&mut self, id: &str, exec: &str, wanted: api::Status) -> Result<()> {
        let mut last = Err(Code::OK);
        let waited = process::eventually("a status", PATIENCE, || {
            last = self.status(id, exec)?;
            Ok((last == Ok(wanted)).then_some(()))
        });
        if waited.is_err() {
            bail!("{id} {exec}: {last:?}, not {wanted:?}");
        }
        Ok(())
    }
}

/// The bundle's directory, with `config.json` in it.
fn write_bundle(bed: &Bed, id: &str, spec: &Value) -> Result<PathBuf> {
    let bundle = bed.dir.join("disk/bundles").join(id);
    fs::create_dir_all(&bundle)?;
    fs::write(bundle.join("config.json"), serde_json::to_vec(spec)?)?;
    Ok(bundle)
}

/// A shim logs into a pipe in its bundle; its lines go where containerd's go.
fn follow_log(bed: &Bed, bundle: &Path) -> Result<()> {
    let pipe = bundle.join("log");
    if !pipe.exists() {
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&pipe, mode).context("make the log's pipe")?;
    }
    let mut log = File::options().append(true).open(bed.containerd().log())?;
    // For reading and writing: opening does not wait, and the end of one writer is not the end.
    let mut pipe = File::options().read(true).write(true).open(pipe)?;
    std::thread::spawn(move || std::io::copy(&mut pipe, &mut log));
    Ok(())
}

/// What `ctr --runtime-config-path` makes of the settings: `runtimeoptions.v1.Options`, whose field 3 is
/// the configuration itself.
fn options(bed: &Bed, runtime: Runtime) -> Option<Any> {
    if runtime == Runtime::Runc {
        return None;
    }
    let text = bed.settings.borrow().text();
    let mut value = Vec::new();
    let mut out = CodedOutputStream::vec(&mut value);
    let written = out
        .write_bytes(3, text.as_bytes())
        .and_then(|()| out.flush());
    drop(out);
    written.ok()?;
    Some(Any {
        type_url: "runtimeoptions.v1.Options".to_owned(),
        value,
        ..Any::default()
    })
}

/// A JSON object as containerd sends the specification's parts.
pub fn json_any(kind: &str, value: &Value) -> Any {
    Any {
        type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{kind}"),
        value: value.to_string().into_bytes(),
        ..Any::default()
    }
}
