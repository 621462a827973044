//! What the calls of the table are made on: containers and execs of a pod, brought into a state.

use std::{
    fs::File,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};
use isopod_tests::{
    Bed, check_eq,
    shim::{Caller, Code, Empty, Message, Refusal, Shim, api, json_any},
    spec::spec,
};
use serde_json::{Value, json};

/// The first container, which must not notice.
pub const POD: &str = "pod";
const SIGCONT: u32 = 18;
const SIGKILL: u32 = 9;
/// The exec that a subject is, or has.
const EXEC: &str = "one";

/// A shim with its first container.
pub struct Pod<'b> {
    bed: &'b Bed,
    /// The shim.
    pub shim: Shim<'b>,
    serial: AtomicU32,
}

/// What a call names.
pub struct Subject {
    /// The container.
    pub id: String,
    /// The exec, or nothing.
    pub exec: String,
}

impl Subject {
    /// A container.
    pub fn container(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            exec: String::new(),
        }
    }
}

impl<'b> Pod<'b> {
    /// A shim without a container.
    pub fn start(bed: &'b Bed) -> Result<Self> {
        let shim = Shim::start(bed, POD, &spec_of(bed, POD, false)?)?;
        let serial = AtomicU32::new(0);
        Ok(Self { bed, shim, serial })
    }

    /// The container that must not notice.
    pub fn begin(&self) -> Result<()> {
        self.create(POD, false)?;
        self.act("Start", POD, "")
    }

    /// It has not; it is ended, and the shim with it.
    pub fn finish(self) -> Result<()> {
        let mut caller = self.shim.caller()?;
        check_eq!(caller.status(POD, "")?, Ok(api::Status::RUNNING), "the pod");
        self.kill(POD, "")?;
        self.act("Delete", POD, "")?;
        self.shim.shut_down(POD)
    }

    /// The first container runs, and does what it is told.
    pub fn notices_nothing(&self) -> Result<()> {
        let mut caller = self.shim.caller()?;
        check_eq!(caller.status(POD, "")?, Ok(api::Status::RUNNING), "the pod");
        self.add(POD)?;
        self.act("Start", POD, EXEC)?;
        self.kill(POD, EXEC)?;
        self.act("Delete", POD, EXEC)
    }

    /// Brings something into a state.
    pub fn subject(&self, state: &'static str) -> Result<Subject> {
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        let id = format!("c{number}");
        let is_exec = state.starts_with("exec-");
        let made = || -> Result<()> {
            match state {
                "empty" | "unknown" => return Ok(()),
                _ => self.create(&id, state == "terminal")?,
            }
            match state {
                "created" => return Ok(()),
                "exec-early" => return self.add(&id),
                _ => {}
            }
            self.act("Start", &id, "")?;
            match state {
                "paused" => self.act("Pause", &id, "")?,
                "stopped" => self.kill(&id, "")?,
                "exec-created" => self.add(&id)?,
                "exec-running" | "exec-stopped" => {
                    self.add(&id)?;
                    self.act("Start", &id, EXEC)?;
                }
                _ => {}
            }
            if state == "exec-stopped" {
                self.kill(&id, EXEC)?;
            }
            Ok(())
        };
        made().with_context(|| format!("make {state}"))?;
        let exec = if is_exec { EXEC } else { "" }.to_owned();
        Ok(Subject { id, exec })
    }

    /// Ends whatever has become of it, and its container; nothing of it may be left.
    pub fn end(&self, subject: &Subject) -> Result<()> {
        let mut caller = self.shim.caller()?;
        let id = &subject.id;
        match caller.status(id, "")? {
            Err(Code::NOT_FOUND) => return Ok(()),
            Err(code) => bail!("State of {id}: {code:?}"),
            // runc's shim says so of a container that a signal to all has thawed, too.
            Ok(api::Status::PAUSED) => drop(self.act("Resume", id, "")),
            Ok(_) => {}
        }
        if caller.status(id, "")? != Ok(api::Status::STOPPED) {
            self.kill(id, "")?;
        }
        for exec in [EXEC, "two"] {
            match caller.status(id, exec)? {
                Err(Code::NOT_FOUND) => continue,
                // It dies with its container.
                Ok(api::Status::RUNNING) => caller.becomes(id, exec, api::Status::STOPPED)?,
                _ => {}
            }
            self.act("Delete", id, exec)?;
        }
        self.act("Delete", id, "")?;
        check_eq!(caller.status(id, "")?, Err(Code::NOT_FOUND), "{id}");
        Ok(())
    }

    fn create(&self, id: &str, terminal: bool) -> Result<()> {
        let mut request = self.shim.creation(id, &spec_of(self.bed, id, terminal)?)?;
        if terminal {
            request.terminal = true;
            request.stdout = self.output(id)?.display().to_string();
        }
        self.shim
            .caller()?
            .ask::<Empty>("Create", &request)
            .map(drop)
    }

    /// A pipe whose reader stays until the case ends.
    fn output(&self, id: &str) -> Result<PathBuf> {
        let path = self.bed.dir.join(format!("{id}.out"));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
        let mut pipe = File::options().read(true).write(true).open(&path)?;
        std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()));
        Ok(path)
    }

    fn add(&self, id: &str) -> Result<()> {
        let request = exec(id, EXEC, Some(&process()));
        self.shim.caller()?.ask::<Empty>("Exec", &request).map(drop)
    }

    /// A call that needs no more than names.
    pub fn act(&self, call: &str, id: &str, exec: &str) -> Result<()> {
        let subject = Subject {
            id: id.to_owned(),
            exec: exec.to_owned(),
        };
        let (method, request) = self.request(call, &subject)?;
        let mut caller: Caller = self.shim.caller()?;
        caller.send(method, request)?;
        let answer = caller.answer::<Empty>(std::time::Duration::from_secs(90))?;
        let answer = answer.with_context(|| format!("{call} of {id} {exec} is not answered"))?;
        answer
            .map(drop)
            .map_err(|refusal| anyhow::anyhow!("{call} of {id} {exec}: {refusal:?}"))
    }

    /// Kills a process, and waits for its end.
    fn kill(&self, id: &str, exec: &str) -> Result<()> {
        let killed = api::KillRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            signal: SIGKILL,
            ..api::KillRequest::default()
        };
        let mut caller = self.shim.caller()?;
        match caller.call::<Empty>("Kill", &killed)? {
            // It has ended by itself meanwhile.
            Ok(_)
            | Err(Refusal {
                code: Code::NOT_FOUND,
                ..
            }) => {}
            Err(refusal) => bail!("Kill of {id} {exec}: {refusal:?}"),
        }
        caller.becomes(id, exec, api::Status::STOPPED)
    }

    /// The method and the request of a call of the table: a method's name, and what is special about it.
    pub fn request(&self, call: &str, subject: &Subject) -> Result<(&'static str, Vec<u8>)> {
        let (id, exec_id) = (subject.id.clone(), subject.exec.clone());
        macro_rules! encoded {
            ($method:literal, $message:ident { $($field:ident : $value:expr),* $(,)? }) => {
                ($method, api::$message { $($field: $value,)* ..api::$message::default() }.write_to_bytes()?)
            };
        }
        Ok(match call {
            "State" => encoded!(
                "State",
                StateRequest {
                    id: id,
                    exec_id: exec_id
                }
            ),
            "Start" => encoded!(
                "Start",
                StartRequest {
                    id: id,
                    exec_id: exec_id
                }
            ),
            "Wait" => encoded!(
                "Wait",
                WaitRequest {
                    id: id,
                    exec_id: exec_id
                }
            ),
            "Delete" => encoded!(
                "Delete",
                DeleteRequest {
                    id: id,
                    exec_id: exec_id
                }
            ),
            "Kill CONT" => encoded!(
                "Kill",
                KillRequest {
                    id: id,
                    exec_id: exec_id,
                    signal: SIGCONT
                }
            ),
            "Kill CONT all" => {
                encoded!(
                    "Kill",
                    KillRequest {
                        id: id,
                        exec_id: exec_id,
                        signal: SIGCONT,
                        all: true
                    }
                )
            }
            "Kill KILL" => encoded!(
                "Kill",
                KillRequest {
                    id: id,
                    exec_id: exec_id,
                    signal: SIGKILL
                }
            ),
            "Kill 99" => encoded!(
                "Kill",
                KillRequest {
                    id: id,
                    exec_id: exec_id,
                    signal: 99
                }
            ),
            "Pause" => encoded!("Pause", PauseRequest { id: id }),
            "Resume" => encoded!("Resume", ResumeRequest { id: id }),
            "Pids" => encoded!("Pids", PidsRequest { id: id }),
            "Stats" => encoded!("Stats", StatsRequest { id: id }),
            "Checkpoint" => encoded!(
                "Checkpoint",
                CheckpointTaskRequest {
                    id: id,
                    path: "/tmp/never".into()
                }
            ),
            "Connect" => encoded!("Connect", ConnectRequest { id: id }),
            "Shutdown" => encoded!("Shutdown", ShutdownRequest { id: id }),
            "Update" => encoded!(
                "Update",
                UpdateTaskRequest {
                    id: id,
                    resources: Some(json_any(
                        "LinuxResources",
                        &json!({ "pids": { "limit": 77 } })
                    ))
                    .into()
                }
            ),
            "Update without resources" => encoded!("Update", UpdateTaskRequest { id: id }),
            "Update with garbage" => encoded!(
                "Update",
                UpdateTaskRequest {
                    id: id,
                    resources: Some(json_any("LinuxResources", &json!(["?"]))).into()
                }
            ),
            "ResizePty" => {
                encoded!(
                    "ResizePty",
                    ResizePtyRequest {
                        id: id,
                        exec_id: exec_id,
                        width: 100,
                        height: 30
                    }
                )
            }
            "CloseIO" => encoded!(
                "CloseIO",
                CloseIORequest {
                    id: id,
                    exec_id: exec_id,
                    stdin: true
                }
            ),
            "Exec" => ("Exec", exec(&id, "two", Some(&process())).write_to_bytes()?),
            "Exec of the same id" => ("Exec", exec(&id, EXEC, Some(&process())).write_to_bytes()?),
            "Exec without an id" => ("Exec", exec(&id, "", Some(&process())).write_to_bytes()?),
            "Exec without a process" => ("Exec", exec(&id, "two", None).write_to_bytes()?),
            "Exec of garbage" => (
                "Exec",
                exec(&id, "two", Some(&json!("?"))).write_to_bytes()?,
            ),
            "Create" | "Create of the same id" => {
                let spec = spec_of(self.bed, &id, false)?;
                ("Create", self.shim.creation(&id, &spec)?.write_to_bytes()?)
            }
            "Create of no bundle" => encoded!(
                "Create",
                CreateTaskRequest {
                    id: id,
                    bundle: "/nowhere".into()
                }
            ),
            other => bail!("there is no call {other:?}"),
        })
    }
}

fn exec(id: &str, exec: &str, process: Option<&Value>) -> api::ExecProcessRequest {
    api::ExecProcessRequest {
        id: id.to_owned(),
        exec_id: exec.to_owned(),
        spec: process.map(|process| json_any("Process", process)).into(),
        ..api::ExecProcessRequest::default()
    }
}

fn process() -> Value {
    json!({ "cwd": "/", "args": ["sleep", "100000"], "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } })
}

/// The specification of a container that sleeps.
pub fn spec_of(bed: &Bed, id: &str, terminal: bool) -> Result<Value> {
    let rootfs = bed.dir.join("disk/calls");
    if !rootfs.exists() {
        bed.unpack(&rootfs)?;
    }
    let cgroup = format!("/{}/{id}", bed.namespace);
    let mut spec = spec(&rootfs, &cgroup, &["sleep", "100000"]);
    spec["process"]["terminal"] = json!(terminal);
    let kind = if id == POD { "sandbox" } else { "container" };
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": POD,
    });
    Ok(spec)
}
