//! What the task service needs of a sandbox, so that its order and its races can be tested without a
//! virtual machine. Same methods, same meaning as [`Sandbox`].

use std::{future::Future, path::Path};

use isopod_sandbox::{
    ContainerRequest, Created, Error, Event, ExecRequest, Exit, ProcessId, Sandbox, SandboxRequest,
    Stats, Stdio,
};
use oci_spec::runtime::LinuxResources;
use tokio::sync::broadcast;

/// The answer of a call on a pod.
pub type Answer<T> = Result<T, Error>;

/// Starts pods.
pub trait Launch: Send + Sync + 'static {
    /// A started pod.
    type Pod: Pod;
    /// [`Sandbox::launch`].
    fn launch(&self, request: SandboxRequest) -> impl Future<Output = Answer<Self::Pod>> + Send;
    /// [`Sandbox::clean_up`].
    fn clean_up(&self, bundle: &Path) -> impl Future<Output = Answer<()>> + Send;
}

/// A started pod: see the methods of [`Sandbox`].
#[allow(missing_docs)]
pub trait Pod: Clone + Send + Sync + 'static {
    fn host_pid(&self) -> u32;
    fn record_in(&self, bundle: &Path) -> Answer<()>;
    fn events(&self) -> broadcast::Receiver<Event>;
    fn create(&self, request: ContainerRequest) -> impl Future<Output = Answer<Created>> + Send;
    fn exec(
        &self,
        id: ProcessId,
        request: ExecRequest,
    ) -> impl Future<Output = Answer<Stdio>> + Send;
    fn start(&self, id: ProcessId) -> impl Future<Output = Answer<u32>> + Send;
    fn wait(&self, id: ProcessId) -> impl Future<Output = Answer<Exit>> + Send;
    fn kill(
        &self,
        id: ProcessId,
        signal: u32,
        all: bool,
    ) -> impl Future<Output = Answer<()>> + Send;
    fn resize(
        &self,
        id: ProcessId,
        columns: u32,
        rows: u32,
    ) -> impl Future<Output = Answer<()>> + Send;
    fn delete(&self, id: ProcessId) -> impl Future<Output = Answer<Exit>> + Send;
    fn pids(&self, container: &str) -> impl Future<Output = Answer<Vec<(u32, String)>>> + Send;
    fn stats(&self, container: &str) -> impl Future<Output = Answer<Stats>> + Send;
    fn pause(&self, container: &str) -> impl Future<Output = Answer<()>> + Send;
    fn resume(&self, container: &str) -> impl Future<Output = Answer<()>> + Send;
    fn update(
        &self,
        container: &str,
        resources: LinuxResources,
    ) -> impl Future<Output = Answer<()>> + Send;
    fn shutdown(&self) -> impl Future<Output = Answer<()>> + Send;
}

/// Launches real sandboxes.
pub struct Sandboxes;

impl Launch for Sandboxes {
    type Pod = Sandbox;
    fn launch(&self, request: SandboxRequest) -> impl Future<Output = Answer<Sandbox>> + Send {
        Sandbox::launch(request)
    }
    fn clean_up(&self, bundle: &Path) -> impl Future<Output = Answer<()>> + Send {
        Sandbox::clean_up(bundle)
    }
}

impl Pod for Sandbox {
    fn host_pid(&self) -> u32 {
        self.host_pid()
    }
    fn record_in(&self, bundle: &Path) -> Answer<()> {
        self.record_in(bundle)
    }
    fn events(&self) -> broadcast::Receiver<Event> {
        self.events()
    }
    async fn create(&self, request: ContainerRequest) -> Answer<Created> {
        self.create(request).await
    }
    async fn exec(&self, id: ProcessId, request: ExecRequest) -> Answer<Stdio> {
        self.exec(id, request).await
    }
    async fn start(&self, id: ProcessId) -> Answer<u32> {
        self.start(id).await
    }
    async fn wait(&self, id: ProcessId) -> Answer<Exit> {
        self.wait(id).await
    }
    async fn kill(&self, id: ProcessId, signal: u32, all: bool) -> Answer<()> {
        self.kill(id, signal, all).await
    }
    async fn resize(&self, id: ProcessId, columns: u32, rows: u32) -> Answer<()> {
        self.resize(id, columns, rows).await
    }
    async fn delete(&self, id: ProcessId) -> Answer<Exit> {
        self.delete(id).await
    }
    async fn pids(&self, container: &str) -> Answer<Vec<(u32, String)>> {
        self.pids(container).await
    }
    async fn stats(&self, container: &str) -> Answer<Stats> {
        self.stats(container).await
    }
    async fn pause(&self, container: &str) -> Answer<()> {
        self.pause(container).await
    }
    async fn resume(&self, container: &str) -> Answer<()> {
        self.resume(container).await
    }
    async fn update(&self, container: &str, resources: LinuxResources) -> Answer<()> {
        self.update(container, resources).await
    }
    async fn shutdown(&self) -> Answer<()> {
        self.shutdown().await
    }
}
