//! Making and starting processes: from a checked request to a process that waits, and on to exec.

use std::{os::fd::AsFd, sync::Arc};

use isopod_container::{
    Also, Launch, NamespaceKind, Report, Word,
    cgroup::{devices, limits},
    id,
    spec::{joins, namespace},
    state::State,
};
use oci_spec::runtime::{LinuxNamespaceType, Process as ProcessSpec, Spec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

use crate::{
    fault::{Fault, act},
    lifecycle::clear_away,
    pipes::End,
    pod::{Container, Exec, Pod},
    process::Process,
    stdio::{Wiring, claim, connect, copy},
};

/// A process that is made up to its exec.
#[derive(Debug)]
pub(crate) struct Waiting(AsyncFd<Launch>);

impl Waiting {
    async fn next(&self) -> Result<Report, Fault> {
        self.0
            .async_io(tokio::io::Interest::READABLE, Launch::try_receive)
            .await
            .map_err(|e| act("listen to a new process", e))
    }

    /// Lets it execute its command.
    pub(crate) async fn start(self, process: &Process) -> Result<(), Fault> {
        if self.0.get_ref().say(Word::Start).is_err() {
            return Err(Fault::Died(process.ended().await.code));
        }
        match self.next().await? {
            Report::Failed(failure) => Err(failure.into()),
            _ => Ok(()),
        }
    }
}

/// Follows a process to the point where it waits for its start; registers its pid on the way.
/// The master of its terminal comes with it.
async fn follow(
    pod: &Pod,
    launch: Launch,
    process: &Arc<Process>,
) -> Result<(Waiting, Option<Arc<End>>), Fault> {
    let waiting =
        Waiting(crate::sys::watch_launch(launch).map_err(|e| act("listen to a new process", e))?);
    loop {
        match waiting.next().await? {
            Report::Forked(pid) => {
                pod.register(pid, process);
                waiting
                    .0
                    .get_ref()
                    .say(Word::Known)
                    .map_err(|e| act("speak to a new process", e))?;
            }
            Report::Ready(master) => {
                let master = master
                    .map(End::new)
                    .transpose()
                    .map_err(|e| act("take a terminal", e))?
                    .map(Arc::new);
                return Ok((waiting, master));
            }
            Report::Failed(failure) => return Err(failure.into()),
            Report::Closed if process.pid() == 0 => {
                return Err(act("make a process", "its maker ended"));
            }
            Report::Closed => return Err(Fault::Died(process.ended().await.code)),
        }
    }
}

/// Ends a process whose making failed, and waits until it is gone.
async fn abandon(process: &Process) {
    if process.pid() != 0 {
        // It may have ended by itself.
        let _ = process.signal(libc::SIGKILL);
        process.ended().await;
    }
}

fn kinds(spec: &Spec, wanted: impl Fn(bool) -> bool) -> Vec<NamespaceKind> {
    let Some(linux) = spec.linux() else {
        return Vec::new();
    };
    [
        (NamespaceKind::Ipc, LinuxNamespaceType::Ipc),
        (NamespaceKind::Uts, LinuxNamespaceType::Uts),
        (NamespaceKind::Pid, LinuxNamespaceType::Pid),
        (NamespaceKind::User, LinuxNamespaceType::User),
    ]
    .into_iter()
    .filter(|(_, kind)| namespace(linux, *kind).is_some() && wanted(joins(linux, *kind)))
    .map(|(kind, _)| kind)
    .collect()
}

/// Makes a container; its init waits for [`start`]. Answers the pid.
pub(crate) async fn create(
    pod: Arc<Pod>,
    id: String,
    spec: Spec,
    wiring: Wiring,
) -> Result<i32, Fault> {
    id::check(&id)?;
    pod.reserve(&id)?;
    let result = make_container(&pod, &id, spec, wiring).await;
    match result {
        Ok(container) => {
            let pid = container.init.pid();
            pod.insert(&id, Arc::clone(&container));
            container.init.announce(&pod.events);
            Ok(pid)
        }
        Err(fault) => {
            pod.remove(&id);
            Err(fault)
        }
    }
}

async fn make_container(
    pod: &Pod,
    id: &str,
    spec: Spec,
    wiring: Wiring,
) -> Result<Arc<Container>, Fault> {
    let mut shared = Vec::new();
    for kind in kinds(&spec, |join| join) {
        let fd = pod.shared(kind).ok_or_else(|| {
            Fault::Precondition(format!(
                "linux.namespaces: no container of the pod has a {kind:?} namespace to join"
            ))
        })?;
        shared.push((kind, fd));
    }
    let claimed = claim(pod, wiring).await?;
    let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
    let settings = resources.map(limits::plan).transpose()?.unwrap_or_default();
    let rules = resources.and_then(|r| r.devices().as_deref());
    let rules = devices::compile(rules.unwrap_or_default())?;
    let own = kinds(&spec, |join| !join);
    let own_pid_namespace = own.contains(&NamespaceKind::Pid);
    let seccomp = spec.linux().as_ref().and_then(|l| l.seccomp().clone());
    let also = Also::of(&spec);

    let cgroup = pod.tree.make(id, &settings)?;
    let process = Arc::new(Process::new(id, ""));
    let result = async {
        let (streams, ends) = connect(wiring).map_err(|e| act("make pipes", e))?;
        let directory = cgroup.open()?;
        let devices = devices::attach(directory.as_fd(), &rules, None)?;
        let namespaces = shared
            .iter()
            .map(|(kind, fd)| (*kind, fd.as_fd()))
            .collect();
        let launch = Launch::create(
            spec,
            streams,
            Some(directory.as_fd()),
            &namespaces,
            pod.anchor.clone(),
        )?;
        let (waiting, terminal) = follow(pod, launch, &process).await?;
        let pidfd = Pid::from_raw(process.pid())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|e| act("open a process", e))?;
        Ok((ends, waiting, terminal, pidfd, devices))
    }
    .await;
    let (ends, waiting, terminal, pidfd, devices) = match result {
        Ok(made) => made,
        Err(fault) => {
            abandon(&process).await;
            clear_away(&cgroup).await;
            return Err(fault);
        }
    };
    pod.share(process.pid(), &own);
    if let Some(master) = &terminal {
        process.set_terminal(Arc::clone(master));
    }
    copy(&process, claimed, ends, terminal);
    let container = Container::new(
        process,
        cgroup,
        devices,
        pidfd,
        own_pid_namespace,
        seccomp,
        also,
    );
    *container.waiting() = Some(waiting);
    let container = Arc::new(container);
    pod.oom.add(&container);
    Ok(container)
}

/// Runs a created init.
pub(crate) async fn start_container(container: Arc<Container>) -> Result<i32, Fault> {
    let process = &container.init;
    process
        .state()
        .require(process.state().can_start(), "start", "container")?;
    let Some(waiting) = container.waiting().take() else {
        return Err(Fault::Precondition(
            "the container is being started".to_owned(),
        ));
    };
    waiting.start(process).await?;
    // It may have run to its end already: then it stays stopped.
    let _ = process.step(State::start);
    Ok(process.pid())
}

/// Registers an exec.
pub(crate) fn register_exec(
    pod: &Pod,
    id: &str,
    exec: &str,
    spec: ProcessSpec,
    wiring: Wiring,
) -> Result<(), Fault> {
    id::check(exec)?;
    let container = pod.container(id)?;
    let state = container.init.state();
    state.require(state.can_exec(), "exec in", "container")?;
    let mut execs = container.execs();
    if execs.contains_key(exec) {
        return Err(Fault::Exists {
            subject: "process",
            id: exec.to_owned(),
        });
    }
    let order = Exec::new(Process::new(id, exec), spec, wiring);
    execs.insert(exec.to_owned(), Arc::new(order));
    Ok(())
}

/// Makes and runs a registered exec.
pub(crate) async fn start_exec(
    pod: Arc<Pod>,
    container: Arc<Container>,
    exec: Arc<Exec>,
) -> Result<i32, Fault> {
    let state = container.init.state();
    state.require(state.can_exec(), "exec in", "container")?;
    let process = &exec.process;
    let Some((spec, wiring)) = exec.take_order() else {
        let state = process.state();
        state.require(state.can_start(), "start", "process")?;
        return Err(Fault::Precondition(
            "the process is being started".to_owned(),
        ));
    };
    let result = async {
        let claimed = claim(&pod, wiring).await?;
        let (streams, ends) = connect(wiring).map_err(|e| act("make pipes", e))?;
        let directory = container.cgroup.open()?;
        let launch = Launch::exec(
            spec,
            container.seccomp.clone(),
            container.also,
            streams,
            Some(directory.as_fd()),
            container.pidfd.as_fd(),
        )?;
        let (waiting, terminal) = follow(&pod, launch, process).await?;
        if let Some(master) = &terminal {
            process.set_terminal(Arc::clone(master));
        }
        copy(process, claimed, ends, terminal);
        waiting.start(process).await
    }
    .await;
    if let Err(fault) = result {
        abandon(process).await;
        // A process that never was: it can only be deleted.
        process.fail();
        return Err(fault);
    }
    let _ = process.step(State::start);
    process.announce(&pod.events);
    Ok(process.pid())
}
