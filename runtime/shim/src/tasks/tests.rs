//! Order and races, on a pod without a virtual machine.

#[path = "pod_tests.rs"]
mod of_the_pod;

use std::{path::Path, time::SystemTime};

use containerd_shim_protos::{
    events::task::{TaskExit, TaskOOM},
    protobuf::Message,
};
use isopod_sandbox::{
    ContainerRequest, Created, Event, ExecRequest, Exit, SandboxRequest, Stats, Status, Stdio,
};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use tokio::sync::{Semaphore, broadcast};

use super::*;
use crate::{bundle::ServerRecord, io::Paths, pod::Pod};

const VM: u32 = 4711;

/// What the fake does when asked.
struct Script {
    /// Permits for launches and creates to go on.
    launches: Semaphore,
    creates: Semaphore,
    /// Launches so far, failures among them.
    launched: Mutex<usize>,
    fail_launches: Mutex<usize>,
    fail_start: AtomicBool,
    /// Processes end inside start, before it answers.
    instant_exit: AtomicBool,
    exits: Mutex<HashMap<ProcessId, watch::Sender<Option<Exit>>>>,
    calls: Mutex<Vec<String>>,
    cleaned: AtomicBool,
    ended: AtomicBool,
    broadcast: broadcast::Sender<Event>,
}

#[derive(Clone)]
struct Fake(Arc<Script>);

impl Fake {
    fn new() -> Self {
        Self(Arc::new(Script {
            launches: Semaphore::new(Semaphore::MAX_PERMITS),
            creates: Semaphore::new(Semaphore::MAX_PERMITS),
            launched: Mutex::default(),
            fail_launches: Mutex::default(),
            fail_start: AtomicBool::new(false),
            instant_exit: AtomicBool::new(false),
            exits: Mutex::default(),
            calls: Mutex::default(),
            cleaned: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            broadcast: broadcast::Sender::new(16),
        }))
    }

    fn call(&self, text: String) {
        lock(&self.0.calls).push(text);
    }

    fn calls(&self) -> Vec<String> {
        lock(&self.0.calls).clone()
    }

    fn end(&self, id: &ProcessId, code: u32) {
        let at = SystemTime::now();
        if let Some(exit) = lock(&self.0.exits).get(id) {
            exit.send_if_modified(|exit| {
                let first = exit.is_none();
                exit.get_or_insert(Exit { pid: 7, code, at });
                first
            });
        }
    }
}

impl Launch for Fake {
    type Pod = Self;
    async fn launch(&self, _: SandboxRequest) -> Answer<Self> {
        *lock(&self.0.launched) += 1;
        let permit = self.0.launches.acquire().await;
        permit.expect("never closed").forget();
        let mut failures = lock(&self.0.fail_launches);
        if *failures > 0 {
            *failures -= 1;
            return Err(Error::Failed("no kernel".into()));
        }
        Ok(self.clone())
    }
    async fn clean_up(&self, _: &Path) -> Answer<()> {
        self.0.cleaned.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl Pod for Fake {
    fn host_pid(&self) -> u32 {
        VM
    }
    fn record_in(&self, bundle: &Path) -> Answer<()> {
        let written = std::fs::write(bundle.join("pod-record"), "");
        written.map_err(|error| Error::Failed(error.to_string()))
    }
    fn events(&self) -> broadcast::Receiver<Event> {
        self.0.broadcast.subscribe()
    }
    async fn create(&self, request: ContainerRequest) -> Answer<Created> {
        let permit = self.0.creates.acquire().await;
        permit.expect("never closed").forget();
        lock(&self.0.exits).insert(process(&request.id, ""), watch::Sender::new(None));
        Ok(Created {
            pid: 7,
            stdio: Stdio::default(),
        })
    }
    async fn exec(&self, id: ProcessId, _: ExecRequest) -> Answer<Stdio> {
        lock(&self.0.exits).insert(id, watch::Sender::new(None));
        Ok(Stdio::default())
    }
    async fn start(&self, id: ProcessId) -> Answer<u32> {
        if self.0.fail_start.load(Ordering::SeqCst) {
            return Err(Error::Failed("not found".into()));
        }
        if self.0.instant_exit.load(Ordering::SeqCst) {
            self.end(&id, 3);
            // Whoever waits for the end gets every chance to be faster than this answer.
            time::sleep(Duration::from_millis(20)).await;
        }
        Ok(7)
    }
    async fn wait(&self, id: ProcessId) -> Answer<Exit> {
        let exit = lock(&self.0.exits).get(&id).map(watch::Sender::subscribe);
        let mut exit = exit.ok_or_else(|| Error::NotFound("wait".into()))?;
        let exit = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        exit.ok()
            .flatten()
            .ok_or_else(|| Error::VmGone("dropped".into()))
    }
    async fn kill(&self, id: ProcessId, signal: u32, all: bool) -> Answer<()> {
        self.call(format!("kill {} {signal} {all}", id.container));
        self.end(&id, 128 + signal);
        Ok(())
    }
    async fn resize(&self, _: ProcessId, columns: u32, rows: u32) -> Answer<()> {
        self.call(format!("resize {columns} {rows}"));
        Ok(())
    }
    async fn delete(&self, id: ProcessId) -> Answer<Exit> {
        self.call(format!("delete {} {}", id.container, id.exec));
        let exit = lock(&self.0.exits).remove(&id);
        let exit = exit.and_then(|exit| *exit.borrow());
        exit.ok_or_else(|| Error::WrongState("never began".into()))
    }
    async fn pids(&self, _: &str) -> Answer<Vec<(u32, String)>> {
        Ok(vec![(7, String::new()), (8, "e".into())])
    }
    async fn stats(&self, _: &str) -> Answer<Stats> {
        Ok(Stats::new())
    }
    async fn pause(&self, _: &str) -> Answer<()> {
        Ok(())
    }
    async fn resume(&self, _: &str) -> Answer<()> {
        Ok(())
    }
    async fn update(&self, _: &str, _: LinuxResources) -> Answer<()> {
        Ok(())
    }
    async fn shutdown(&self) -> Answer<()> {
        self.0.ended.store(true, Ordering::SeqCst);
        Ok(())
    }
}

struct Fixture {
    fake: Fake,
    tasks: Arc<Tasks<Fake>>,
    bundle: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let bundle = tempfile::tempdir().expect("a directory");
    let config = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#;
    std::fs::write(bundle.path().join("config.json"), config).expect("written");
    let fake = Fake::new();
    let path = bundle.path().to_owned();
    let tasks = Tasks::new(fake.clone(), "ns", "pod", path, Events::new("ns"));
    Fixture {
        fake,
        tasks: Arc::new(tasks),
        bundle,
    }
}

impl Fixture {
    fn request(&self, id: &str) -> Create {
        Create {
            id: id.to_owned(),
            bundle: self.bundle.path().to_owned(),
            rootfs: Vec::new(),
            mounts: Vec::new(),
            paths: Paths::default(),
            settings: isopod_settings::Settings::default(),
        }
    }

    async fn create(&self, id: &str) -> Answer<u32> {
        self.tasks.create(self.request(id)).await
    }

    async fn running(&self, id: &str) {
        self.create(id).await.expect("creates");
        self.tasks.start(process(id, "")).await.expect("starts");
    }

    async fn exec(&self, id: &str, exec: &str) -> Answer<()> {
        let request = Exec {
            id: process(id, exec),
            process: ProcessSpec::default(),
            paths: Paths::default(),
        };
        self.tasks.exec(request).await
    }

    fn status(&self, id: &str, exec: &str) -> Status {
        let state = self.tasks.state(&process(id, exec)).expect("known");
        state.status
    }

    /// The topics queued so far, without "/tasks/".
    fn topics(&self) -> Vec<String> {
        let envelopes = self.tasks.events.queued();
        let topics = envelopes.iter().map(|envelope| &envelope.topic);
        topics.map(|topic| topic.replace("/tasks/", "")).collect()
    }
}

fn process(container: &str, exec: &str) -> ProcessId {
    ProcessId {
        container: container.to_owned(),
        exec: exec.to_owned(),
    }
}

async fn settle() {
    time::sleep(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn a_life_in_order() {
    let f = fixture();
    assert_eq!(f.create("c").await.expect("creates"), VM);
    assert_eq!(f.status("c", ""), Status::Created);
    assert_eq!(f.tasks.start(process("c", "")).await.expect("starts"), VM);
    assert_eq!(f.status("c", ""), Status::Running);
    f.fake.end(&process("c", ""), 3);
    let exit = f.tasks.wait(&process("c", "")).await.expect("ends");
    assert_eq!(exit.code, 3);
    assert_eq!(f.status("c", ""), Status::Stopped);
    let deleted = f.tasks.delete(process("c", "")).await.expect("deletes");
    assert_eq!((deleted.pid, deleted.exit.code), (VM, 3));
    assert_eq!(f.topics(), ["create", "start", "exit", "delete"]);
    let state = f.tasks.state(&process("c", ""));
    assert!(matches!(state, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn an_instant_exit_comes_after_its_start() {
    let f = fixture();
    f.fake.0.instant_exit.store(true, Ordering::SeqCst);
    f.running("c").await;
    f.tasks.wait(&process("c", "")).await.expect("ends");
    let late = f.exec("c", "e").await;
    assert!(matches!(late, Err(Error::WrongState(_))));
    assert_eq!(f.topics(), ["create", "start", "exit"]);
}

#[tokio::test]
async fn an_execs_instant_exit_comes_after_its_start() {
    let f = fixture();
    f.running("c").await;
    f.fake.0.instant_exit.store(true, Ordering::SeqCst);
    f.exec("c", "e").await.expect("adds");
    f.tasks.start(process("c", "e")).await.expect("starts");
    let exit = f.tasks.wait(&process("c", "e")).await.expect("ends");
    assert_eq!(exit.code, 3);
    f.tasks.delete(process("c", "e")).await.expect("deletes");
    assert_eq!(
        f.topics(),
        ["create", "start", "exec-added", "exec-started", "exit"]
    );
    let envelopes = f.tasks.events.queued();
    let event = &envelopes.last().expect("five").event;
    let exit = TaskExit::parse_from_bytes(&event.value).expect("decodes");
    assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("c", "e"));
}

#[tokio::test]
async fn memory_shortage_is_told_before_the_exit_it_caused() {
    let f = fixture();
    f.running("c").await;
    let container = "c".to_owned();
    let sent = f.fake.0.broadcast.send(Event::OutOfMemory { container });
    sent.expect("somebody listens");
    f.fake.end(&process("c", ""), 137);
    f.tasks.wait(&process("c", "")).await.expect("ends");
    assert_eq!(f.topics(), ["create", "start", "oom", "exit"]);
    let event = f.tasks.events.queued().swap_remove(2).event;
    let oom = TaskOOM::parse_from_bytes(&event.value).expect("decodes");
    assert_eq!(oom.container_id, "c");
}

#[tokio::test]
async fn a_never_started_container_is_deleted() {
    let f = fixture();
    f.create("c").await.expect("creates");
    let deleted = f.tasks.delete(process("c", "")).await.expect("deletes");
    assert_eq!(deleted.exit.code, 137);
    assert_eq!(f.topics(), ["create", "exit", "delete"]);
    assert_eq!(f.fake.calls(), ["kill c 9 false", "delete c "]);
}

#[tokio::test]
async fn a_running_container_is_not_deleted() {
    let f = fixture();
    f.running("c").await;
    let refused = f.tasks.delete(process("c", "")).await;
    assert!(matches!(refused, Err(Error::WrongState(_))));
    assert_eq!(f.status("c", ""), Status::Running);
}

#[tokio::test]
async fn of_two_deletes_one_succeeds() {
    let f = fixture();
    f.running("c").await;
    f.fake.end(&process("c", ""), 0);
    f.tasks.wait(&process("c", "")).await.expect("ends");
    let (a, b) = tokio::join!(
        f.tasks.delete(process("c", "")),
        f.tasks.delete(process("c", ""))
    );
    let not_found = |r: &Answer<_>| matches!(r, Err(Error::NotFound(_)));
    assert!(a.is_ok() && not_found(&b) || b.is_ok() && not_found(&a));
    assert_eq!(f.topics(), ["create", "start", "exit", "delete"]);
}

#[tokio::test]
async fn kills() {
    let f = fixture();
    let absent = f.tasks.kill(process("c", ""), 15, false).await;
    assert!(matches!(absent, Err(Error::NotFound(_))));
    f.create("c").await.expect("creates");
    f.exec("c", "e").await.expect("adds");
    let early = f.tasks.kill(process("c", "e"), 15, false).await;
    assert!(matches!(early, Err(Error::WrongState(_))));
    // Before Start: init is killed all the same.
    f.tasks
        .kill(process("c", ""), 9, true)
        .await
        .expect("kills");
    let exit = f.tasks.wait(&process("c", "")).await.expect("ends");
    assert_eq!(exit.code, 137);
    let late = f.tasks.kill(process("c", ""), 9, false).await;
    assert!(matches!(late, Err(Error::NotFound(_))));
    let start = f.tasks.start(process("c", "")).await;
    assert!(matches!(start, Err(Error::WrongState(_))));
}

#[tokio::test]
async fn a_failed_exec_start_frees_its_waiters_and_its_name() {
    let f = fixture();
    f.running("c").await;
    f.exec("c", "e").await.expect("adds");
    let again = f.exec("c", "e").await;
    assert!(matches!(again, Err(Error::AlreadyExists(_))));
    f.fake.0.fail_start.store(true, Ordering::SeqCst);
    let id = process("c", "e");
    let wait = tokio::spawn({
        let (tasks, id) = (f.tasks.clone(), id.clone());
        async move { tasks.wait(&id).await }
    });
    settle().await;
    assert!(f.tasks.start(id.clone()).await.is_err());
    let exit = wait.await.expect("no panic").expect("answered");
    assert_eq!(exit.code, 255);
    f.tasks.delete(id).await.expect("deletes");
    f.exec("c", "e").await.expect("the name is free");
}

#[tokio::test]
async fn pause_and_resume_by_state() {
    let f = fixture();
    f.create("c").await.expect("creates");
    let early = f.tasks.pause("c".into()).await;
    assert!(matches!(early, Err(Error::WrongState(_))));
    f.tasks.start(process("c", "")).await.expect("starts");
    f.tasks.pause("c".into()).await.expect("pauses");
    assert_eq!(f.status("c", ""), Status::Paused);
    let twice = f.tasks.pause("c".into()).await;
    assert!(matches!(twice, Err(Error::WrongState(_))));
    f.tasks.resume("c".into()).await.expect("resumes");
    assert_eq!(f.status("c", ""), Status::Running);
    assert_eq!(f.topics(), ["create", "start", "paused", "resumed"]);
}

#[tokio::test]
async fn pids_of_an_ended_container_are_not_empty() {
    let f = fixture();
    f.running("c").await;
    let both = f.tasks.pids("c").await.expect("known");
    assert_eq!(both, [(7, String::new()), (8, "e".to_owned())]);
    f.fake.end(&process("c", ""), 0);
    f.tasks.wait(&process("c", "")).await.expect("ends");
    let init = f.tasks.pids("c").await.expect("known");
    assert_eq!(init, [(7, String::new())]);
}

#[tokio::test]
async fn only_a_terminal_is_resized() {
    let f = fixture();
    f.running("c").await;
    let ignored = f.tasks.resize(process("c", ""), 80, 25).await;
    ignored.expect("there is nothing to do");
    let mut request = f.request("t");
    request.paths.terminal = true;
    f.tasks.create(request).await.expect("creates");
    let resized = f.tasks.resize(process("t", ""), 80, 25).await;
    resized.expect("resizes");
    assert_eq!(f.fake.calls(), ["resize 80 25"]);
}
