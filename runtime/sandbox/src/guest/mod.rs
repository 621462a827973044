//! The agent in the guest: its calls in our types. The only place that knows the agent's messages.

mod clock;
pub(crate) mod connect;
mod convert;
mod error;
mod events;

use std::{
    future::Future,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use isopod_protocol::{
    PROTOCOL_VERSION, agent, agent_ttrpc::AgentClient, limits, paths, ports, stream::Header,
};
use protobuf::MessageField;
use tokio::{io::AsyncWriteExt, net::UnixStream, time::timeout};
use ttrpc::{asynchronous::Client, asynchronous::transport::Socket, context};

pub(crate) use error::GuestError;
pub(crate) use events::{GuestEvent, follow};

use crate::{Exit, ProcessId, Stats, engine::Lent};

/// One connection of a call that the agent introduces to a stream: 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamIds {
    pub terminal: bool,
    pub stdin: u64,
    pub stdout: u64,
    pub stderr: u64,
}

/// What the agent said of itself.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    pub kernel_release: String,
    pub agent_version: String,
}

/// What the guest's kernel uses, as far as the host must ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestSize {
    /// No processor is in use from this number on, as it says.
    pub cpus: u32,
    /// Why it is more than was asked for; empty if it is not.
    pub kept: String,
}

/// The agent of one guest.
pub(crate) struct Guest {
    /// Replaced when a lost connection is made again.
    client: Mutex<AgentClient>,
    /// isopod-fs's socket for host programs.
    vsock: PathBuf,
    /// For one request.
    limit: Duration,
    introduction: Introduction,
    /// Held by whoever corrects the guest's clock.
    clock: tokio::sync::Mutex<()>,
}

/// What the agent is told of its pod.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub hostname: String,
    /// It may listen for `isopod debug`.
    pub debug_console: bool,
}

/// How much later than ours a deadline of the guest is.
const LATER: Duration = Duration::from_secs(1);

type Answer<T> = Result<T, GuestError>;

impl Guest {
    /// Connects to a serving agent, greets it and sets the guest's clock.
    pub async fn connect(
        vsock: PathBuf,
        limit: Duration,
        introduction: Introduction,
    ) -> Answer<(Self, Greeting)> {
        let client = client(&vsock, limit).await?;
        let guest = Self {
            client: Mutex::new(client),
            vsock,
            limit,
            introduction,
            clock: tokio::sync::Mutex::default(),
        };
        let greeting = guest.hello().await?;
        guest.sync_clock(true).await?;
        Ok((guest, greeting))
    }

    /// Makes a lost connection again.
    async fn reconnect(&self) -> Answer<()> {
        let client = client(&self.vsock, self.limit).await?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
        self.hello().await.map(drop)
    }

    fn client(&self) -> AgentClient {
        self.client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The guest gives up a little later than we do: our error says more than its.
    fn context(&self) -> context::Context {
        deadline(self.limit.saturating_add(LATER))
    }

    async fn ask<T>(&self, call: impl Future<Output = ttrpc::Result<T>>) -> Answer<T> {
        bounded(self.limit, call).await
    }

    async fn hello(&self) -> Answer<Greeting> {
        let request = agent::HelloRequest {
            protocol_version: PROTOCOL_VERSION,
            shared_tag: paths::SHARED_TAG.to_owned(),
            hostname: self.introduction.hostname.clone(),
            debug_console: self.introduction.debug_console,
            ..Default::default()
        };
        let answer = self
            .ask(self.client().hello(self.context(), &request))
            .await?;
        if answer.protocol_version != PROTOCOL_VERSION {
            return Err(GuestError::Version {
                ours: PROTOCOL_VERSION,
                theirs: answer.protocol_version,
            });
        }
        Ok(Greeting {
            kernel_release: convert::plain(&answer.kernel_release),
            agent_version: convert::plain(&answer.agent_version),
        })
    }

    /// Opens a connection for the stream `id` and introduces it.
    pub async fn open_stream(&self, id: u64) -> Answer<UnixStream> {
        let act = async {
            let mut stream = connect::connect(&self.vsock, ports::STDIO).await?;
            let introduced = stream.write_all(&Header { id }.encode()).await;
            introduced.map_err(GuestError::Stream)?;
            Ok(stream)
        };
        match timeout(self.limit, act).await {
            Ok(stream) => stream,
            Err(_) => Err(GuestError::TimedOut(self.limit)),
        }
    }

    /// Makes a container; answers its init's pid.
    pub async fn create(&self, id: &str, spec_json: Vec<u8>, stdio: StreamIds) -> Answer<u32> {
        let request = agent::CreateRequest {
            container_id: id.to_owned(),
            spec_json,
            stdio: MessageField::some(stdio.into()),
            ..Default::default()
        };
        Ok(self
            .ask(self.client().create(self.context(), &request))
            .await?
            .pid)
    }

    /// Registers an exec.
    pub async fn exec(
        &self,
        id: &ProcessId,
        process_json: Vec<u8>,
        stdio: StreamIds,
    ) -> Answer<()> {
        let request = agent::ExecRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            process_json,
            stdio: MessageField::some(stdio.into()),
            ..Default::default()
        };
        self.ask(self.client().exec(self.context(), &request))
            .await?;
        Ok(())
    }

    /// Runs a created process; answers its pid.
    pub async fn start(&self, id: &ProcessId) -> Answer<u32> {
        Ok(self
            .ask(self.client().start(self.context(), &id.into()))
            .await?
            .pid)
    }

    pub async fn kill(&self, id: &ProcessId, signal: u32, all: bool) -> Answer<()> {
        let request = agent::KillRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            signal,
            all,
            ..Default::default()
        };
        self.ask(self.client().kill(self.context(), &request))
            .await?;
        Ok(())
    }

    /// Frees a stopped process.
    pub async fn delete(&self, id: &ProcessId) -> Answer<Exit> {
        let answer = self
            .ask(self.client().delete(self.context(), &id.into()))
            .await?;
        Ok(convert::exit(&answer))
    }

    pub async fn resize(&self, id: &ProcessId, columns: u32, rows: u32) -> Answer<()> {
        let request = agent::ResizeRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            width: columns,
            height: rows,
            ..Default::default()
        };
        self.ask(self.client().resize(self.context(), &request))
            .await?;
        Ok(())
    }

    pub async fn close_stdin(&self, id: &ProcessId) -> Answer<()> {
        self.ask(self.client().close_stdin(self.context(), &id.into()))
            .await?;
        Ok(())
    }

    pub async fn pids(&self, container: &str) -> Answer<Vec<(u32, String)>> {
        let answer = self
            .ask(
                self.client()
                    .pids(self.context(), &convert::container(container)),
            )
            .await?;
        let processes = answer.processes.into_iter();
        Ok(processes
            .map(|process| (process.pid, convert::plain(&process.exec_id)))
            .collect())
    }

    pub async fn stats(&self, container: &str) -> Answer<Stats> {
        let answer = self
            .ask(
                self.client()
                    .stats(self.context(), &convert::container(container)),
            )
            .await?;
        let known = |name: &String| limits::STAT_FILES.contains(&name.as_str());
        Ok(answer
            .files
            .into_iter()
            .filter(|(name, _)| known(name))
            .collect())
    }

    pub async fn pause(&self, container: &str) -> Answer<()> {
        self.ask(
            self.client()
                .pause(self.context(), &convert::container(container)),
        )
        .await?;
        Ok(())
    }

    pub async fn resume(&self, container: &str) -> Answer<()> {
        self.ask(
            self.client()
                .resume(self.context(), &convert::container(container)),
        )
        .await?;
        Ok(())
    }

    pub async fn update(&self, container: &str, resources_json: Vec<u8>) -> Answer<()> {
        let request = agent::UpdateRequest {
            container_id: container.to_owned(),
            resources_json,
            ..Default::default()
        };
        self.ask(self.client().update(self.context(), &request))
            .await?;
        Ok(())
    }

    /// Brings processors and memory into use, or out of it.
    pub async fn set_size(&self, cpus: u32, memory: Lent) -> Answer<GuestSize> {
        let request = agent::SetSizeRequest {
            cpus,
            used: memory.used.into_iter().map(convert::range).collect(),
            unused: memory.unused.into_iter().map(convert::range).collect(),
            ..Default::default()
        };
        let answer = self
            .ask(self.client().set_size(self.context(), &request))
            .await?;
        Ok(GuestSize {
            cpus: answer.cpus,
            kept: convert::plain(&answer.kept),
        })
    }

    /// Asks the guest to end. The answer may be lost: what counts is the machine's end.
    pub async fn shutdown(&self, limit: Duration) {
        let request = agent::Empty::default();
        let _ = timeout(limit, self.client().shutdown(deadline(limit), &request)).await;
    }

    async fn events(&self, after: u64) -> Answer<Vec<agent::Event>> {
        let request = agent::EventsRequest {
            after,
            ..Default::default()
        };
        let limit = limits::EVENT_POLL.saturating_add(self.limit);
        let client = self.client();
        let poll = client.events(deadline(limit.saturating_add(LATER)), &request);
        Ok(bounded(limit, poll).await?.events)
    }
}

async fn client(vsock: &std::path::Path, limit: Duration) -> Answer<AgentClient> {
    let stream = timeout(limit, connect::connect(vsock, ports::AGENT)).await;
    let stream = stream.map_err(|_| GuestError::TimedOut(limit))??;
    Ok(AgentClient::new(Client::new(Socket::new(stream))))
}

async fn bounded<T>(limit: Duration, call: impl Future<Output = ttrpc::Result<T>>) -> Answer<T> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(GuestError::from),
        Err(_) => Err(GuestError::TimedOut(limit)),
    }
}

fn deadline(limit: Duration) -> context::Context {
    context::with_timeout(i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX))
}
