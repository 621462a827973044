//! A pod without a virtual machine, which does what a test tells it, and the tasks on it.

use std::{path::Path, time::SystemTime};

use isopod_sandbox::{
    ContainerRequest, Created, Event, ExecRequest, Exit, SandboxRequest, Stats, Status, Stdio,
};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use tokio::sync::{Semaphore, broadcast};

use super::super::*;
use crate::{io::Paths, pod::Pod};

pub(super) const VM: u32 = 4711;

/// What the fake does when asked.
pub(super) struct Script {
    /// Permits for launches and creates to go on.
    pub(super) launches: Semaphore,
    pub(super) creates: Semaphore,
    /// Launches so far, failures among them.
    pub(super) launched: Mutex<usize>,
    pub(super) fail_launches: Mutex<usize>,
    pub(super) fail_start: AtomicBool,
    /// Processes end inside start, before it answers.
    pub(super) instant_exit: AtomicBool,
    pub(super) exits: Mutex<HashMap<ProcessId, watch::Sender<Option<Exit>>>>,
    pub(super) calls: Mutex<Vec<String>>,
    pub(super) cleaned: AtomicBool,
    pub(super) ended: AtomicBool,
    pub(super) broadcast: broadcast::Sender<Event>,
}

#[derive(Clone)]
pub(super) struct Fake(pub(super) Arc<Script>);

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

    pub(super) fn calls(&self) -> Vec<String> {
        lock(&self.0.calls).clone()
    }

    pub(super) fn end(&self, id: &ProcessId, code: u32) {
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

pub(super) struct Fixture {
    pub(super) fake: Fake,
    pub(super) tasks: Arc<Tasks<Fake>>,
    pub(super) bundle: tempfile::TempDir,
}

pub(super) fn fixture() -> Fixture {
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
    pub(super) fn request(&self, id: &str) -> Create {
        Create {
            id: id.to_owned(),
            bundle: self.bundle.path().to_owned(),
            rootfs: Vec::new(),
            mounts: Vec::new(),
            paths: Paths::default(),
            settings: isopod_settings::Settings::default(),
        }
    }

    pub(super) async fn create(&self, id: &str) -> Answer<u32> {
        self.tasks.create(self.request(id)).await
    }

    pub(super) async fn running(&self, id: &str) {
        self.create(id).await.expect("creates");
        self.tasks.start(process(id, "")).await.expect("starts");
    }

    pub(super) async fn exec(&self, id: &str, exec: &str) -> Answer<()> {
        let request = Exec {
            id: process(id, exec),
            process: ProcessSpec::default(),
            paths: Paths::default(),
        };
        self.tasks.exec(request).await
    }

    pub(super) fn status(&self, id: &str, exec: &str) -> Status {
        let state = self.tasks.state(&process(id, exec)).expect("known");
        state.status
    }

    /// The topics queued so far, without "/tasks/".
    pub(super) fn topics(&self) -> Vec<String> {
        let envelopes = self.tasks.events.queued();
        let topics = envelopes.iter().map(|envelope| &envelope.topic);
        topics.map(|topic| topic.replace("/tasks/", "")).collect()
    }
}

pub(super) fn process(container: &str, exec: &str) -> ProcessId {
    ProcessId {
        container: container.to_owned(),
        exec: exec.to_owned(),
    }
}

pub(super) async fn settle() {
    time::sleep(Duration::from_millis(50)).await;
}
