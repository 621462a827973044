//! The operations on containers and processes: what is allowed is decided here and now, what takes
//! time becomes an effect.

use std::future::Future;

use super::{
    Call, Reply,
    effect::{Change, Effect, Effects},
    process::Process,
    state::{State, name},
    update,
};
use crate::{
    ContainerRequest, Created, Error, ExecRequest, Exit, ProcessId, Stdio,
    guest::StreamIds,
    host::{self, facts::Host},
    plan::{self, Demand, HostHooks},
    stdio,
};

const SIGKILL: u32 = 9;

/// Begins a call. Answers its effect, or nothing when the answer has been given.
pub(super) fn take(call: Call, state: &mut State, effects: Effects) -> Option<Effect> {
    match call {
        Call::Create(request, reply) => create(*request, reply, state, effects),
        Call::Exec(id, request, reply) => exec(id, *request, reply, state, effects),
        Call::Start(id, reply) => start(id, reply, state, effects),
        Call::State(id, reply) => answer(reply, state.find(&id).map(Process::state)),
        Call::Wait(id, reply) => answer(reply, state.find(&id).map(Process::watch)),
        Call::Kill(id, signal, all, reply) => kill(id, signal, all, reply, state, effects),
        Call::Resize(id, columns, rows, reply) => {
            let guest = effects.guest.clone();
            let allowed = require(state, &id, Process::has_streams, "has no terminal any more");
            pass(allowed, reply, effects, async move {
                guest.resize(&id, columns, rows).await
            })
        }
        Call::CloseStdin(id, reply) => {
            let guest = effects.guest.clone();
            let allowed = require(state, &id, Process::has_streams, "has ended");
            pass(allowed, reply, effects, async move {
                guest.close_stdin(&id).await
            })
        }
        Call::Delete(id, reply) => delete(id, reply, state, effects),
        Call::Pids(container, reply) => {
            let guest = effects.guest.clone();
            let allowed = state.init(&container).map(drop);
            pass(allowed, reply, effects, async move {
                guest.pids(&container).await
            })
        }
        Call::Stats(container, reply) => {
            let guest = effects.guest.clone();
            let allowed = state.init(&container).map(drop);
            pass(allowed, reply, effects, async move {
                guest.stats(&container).await
            })
        }
        Call::Pause(container, reply) => freeze(container, true, reply, state, effects),
        Call::Resume(container, reply) => freeze(container, false, reply, state, effects),
        Call::Update(container, resources, reply) => {
            update::update(container, *resources, reply, state, effects)
        }
        // The driver itself ends the pod.
        Call::Shutdown(_) => None,
    }
}

/// Answers at once. The caller may have gone: then nobody needs it.
pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, Error>) -> Option<Effect> {
    let _ = reply.send(result);
    None
}

/// Passes a request on to the agent, if it is allowed.
fn pass<T: Send + 'static>(
    allowed: Result<(), Error>,
    reply: Reply<T>,
    effects: Effects,
    request: impl Future<Output = Result<T, crate::guest::GuestError>> + Send + 'static,
) -> Option<Effect> {
    match allowed.and_then(|()| alive(&effects)) {
        Ok(()) => Some(effects.pass(reply, request)),
        Err(error) => answer(reply, Err(error)),
    }
}

pub(super) fn alive(effects: &Effects) -> Result<(), Error> {
    effects
        .gone()
        .map_or(Ok(()), |reason| Err(Error::VmGone(reason)))
}

fn require(
    state: &State,
    id: &ProcessId,
    allowed: impl Fn(&Process) -> bool,
    why_not: &str,
) -> Result<(), Error> {
    let process = state.find(id)?;
    if allowed(process) {
        return Ok(());
    }
    Err(Error::WrongState(format!("{} {why_not}", name(id))))
}

/// containerd and runc agree that a process which has ended cannot be found any more.
fn killable(state: &State, id: &ProcessId) -> Result<(), Error> {
    let process = state.find(id)?;
    if process.is_stopped() {
        return Err(Error::NotFound(format!(
            "{} has already finished",
            name(id)
        )));
    }
    require(state, id, Process::can_kill, "is being made")
}

/// Children may outlive an init that shares its PID namespace: all of them can be killed after it.
fn killable_group(state: &State, id: &ProcessId) -> Result<(), Error> {
    state.init(&id.container).map(drop)
}

/// Sends a signal. SIGKILL ends what it is sent to, whatever happens: a guest that does not even
/// answer to it is given up with everything in it.
fn kill(
    id: ProcessId,
    signal: u32,
    all: bool,
    reply: Reply<()>,
    state: &State,
    effects: Effects,
) -> Option<Effect> {
    let allowed = if all {
        killable_group(state, &id)
    } else {
        killable(state, &id)
    };
    if let Err(error) = allowed.and_then(|()| alive(&effects)) {
        return answer(reply, Err(error));
    }
    Some(Box::pin(async move {
        let mut given_up = None;
        let sent = effects.ask(async {
            match effects.guest.kill(&id, signal, all).await {
                Err(error) if error.is_timeout() && signal == SIGKILL => {
                    given_up = Some(format!("{error} when {} was to be killed", name(&id)));
                    Ok(())
                }
                answer => answer,
            }
        });
        let sent = sent.await;
        change(move |state| {
            state.given_up = given_up.or(state.given_up.take());
            let _ = reply.send(sent);
        })
    }))
}

fn create(
    request: ContainerRequest,
    reply: Reply<Created>,
    state: &mut State,
    effects: Effects,
) -> Option<Effect> {
    let id = ProcessId {
        container: request.id.clone(),
        exec: String::new(),
    };
    if let Err(error) = alive(&effects).and_then(|()| state.insert(&id)) {
        return answer(reply, Err(error));
    }
    let resources = request.spec.linux().as_ref();
    let resources = resources.and_then(|linux| linux.resources().as_ref());
    state.set_demand(&request.id, Demand::of(resources));
    let first_pid = state.first_pid(&request.id);
    let ids = state.streams.assign(request.stdio);
    Some(Box::pin(async move {
        let created = make_container(&effects, request, first_pid, ids).await;
        change(move |state| {
            let (created, hooks) = match created {
                Ok(created) => created,
                Err(error) => {
                    state.remove(&id);
                    let _ = reply.send(Err(error));
                    return;
                }
            };
            state.keep_hooks(&id.container, hooks);
            let early = state
                .find_mut(&id)
                .ok()
                .and_then(|init| init.created(created.pid));
            let _ = reply.send(Ok(created));
            tell_early(state, &id, early);
        })
    }))
}

/// Host mounts, hooks, streams, then the agent. On failure nothing stays on the host.
async fn make_container(
    effects: &Effects,
    request: ContainerRequest,
    first_pid: Option<u32>,
    ids: StreamIds,
) -> Result<(Created, HostHooks), Error> {
    let container = request.id.clone();
    let paths = effects.paths.clone();
    // Looking at paths and mounting may wait for disks: not on the runtime's thread.
    let attach = tokio::task::spawn_blocking(move || -> Result<_, Error> {
        let plan = plan::plan_container(&request, first_pid, &Host)?;
        host::owed::note(&plan.hooks)?;
        if let Err(error) = host::container::attach(&paths, &plan) {
            host::owed::forget(&plan.hooks.bundle);
            return Err(error.into());
        }
        Ok(plan)
    });
    let attached = attach
        .await
        .map_err(|error| Error::Failed(error.to_string()))?;
    let plan = attached?;
    let hooks = plan.hooks;
    let act = async {
        effects.growth.grow(effects).await?;
        let told = hooks.state("creating", Some(effects.machine_pid));
        host::hooks::run(&hooks.create, &hooks.bundle, &told)
            .await
            .map_err(|error| Error::Failed(error.to_string()))?;
        let streams = effects.ask(stdio::open(&effects.guest, ids)).await?;
        let made = effects
            .guest
            .create(&container, plan.spec_json, streams.ids);
        let pid = effects.ask(made).await?;
        Ok(Created {
            pid,
            stdio: streams.stdio,
        })
    };
    match act.await {
        Ok(created) => Ok((created, hooks)),
        Err(error) => {
            if let Err(undo) = detach(effects, &container).await {
                tracing::warn!(container, %undo, "undo a failed create");
            }
            // What the first hooks made, the last ones remove.
            host::owed::settle(&hooks).await;
            Err(error)
        }
    }
}

async fn detach(effects: &Effects, container: &str) -> Result<(), Error> {
    let (paths, container) = (effects.paths.clone(), container.to_owned());
    let detach = tokio::task::spawn_blocking(move || host::container::detach(&paths, &container));
    let detached = detach
        .await
        .map_err(|error| Error::Failed(error.to_string()))?;
    Ok(detached?)
}

fn exec(
    id: ProcessId,
    request: ExecRequest,
    reply: Reply<Stdio>,
    state: &mut State,
    effects: Effects,
) -> Option<Effect> {
    let init = state.init(&id.container).map(Process::can_exec);
    let begin = alive(&effects).and(init).and_then(|running| {
        if !running {
            let container = &id.container;
            return Err(Error::WrongState(format!(
                "container {container} is not running"
            )));
        }
        let process = plan::plan_exec(&id.exec, &request)?;
        state.insert(&id)?;
        Ok(process)
    });
    let process = match begin {
        Ok(process) => process,
        Err(error) => return answer(reply, Err(error)),
    };
    let ids = state.streams.assign(request.stdio);
    Some(Box::pin(async move {
        let registered = async {
            let streams = effects.ask(stdio::open(&effects.guest, ids)).await?;
            effects
                .ask(effects.guest.exec(&id, process, streams.ids))
                .await?;
            Ok(streams.stdio)
        };
        let registered = registered.await;
        change(move |state| {
            let mut early = None;
            match (&registered, state.find_mut(&id)) {
                (Ok(_), Ok(process)) => early = process.created(0),
                _ => state.remove(&id),
            }
            let _ = reply.send(registered);
            tell_early(state, &id, early);
        })
    }))
}

fn start(id: ProcessId, reply: Reply<u32>, state: &mut State, effects: Effects) -> Option<Effect> {
    let allowed = require(
        state,
        &id,
        Process::can_start,
        "is not in the state `created`",
    );
    if let Err(error) = alive(&effects).and(allowed) {
        return answer(reply, Err(error));
    }
    if let Ok(process) = state.find_mut(&id) {
        process.starting();
    }
    let hooks = state.hooks_of_init(&id);
    Some(Box::pin(async move {
        let started = effects.ask(effects.guest.start(&id)).await;
        let refused = match (&started, hooks) {
            (Ok(_), Some(hooks)) => poststart(&effects, &id, &hooks).await.err(),
            _ => None,
        };
        change(move |state| {
            let process = state.find_mut(&id).ok();
            let early = match (process, &started) {
                (Some(process), Ok(pid)) => process.started(*pid),
                (Some(process), Err(_)) => process.start_refused(),
                (None, _) => None,
            };
            // Its end is on its way.
            let _ = reply.send(refused.map_or(started, Err));
            tell_early(state, &id, early);
        })
    }))
}

/// Runs what is to run once the command does. After a failure the container is ended, as runc does.
async fn poststart(effects: &Effects, id: &ProcessId, hooks: &HostHooks) -> Result<(), Error> {
    let told = hooks.state("running", Some(effects.machine_pid));
    let ran = host::hooks::run(&hooks.poststart, &hooks.bundle, &told).await;
    let Err(error) = ran else { return Ok(()) };
    // It may have ended by itself.
    let _ = effects.ask(effects.guest.kill(id, SIGKILL, true)).await;
    Err(Error::Failed(error.to_string()))
}

fn tell_early(state: &State, id: &ProcessId, early: Option<Exit>) {
    if let Some(exit) = early {
        state.tell(crate::Event::Exited(id.clone(), exit));
    }
}

fn freeze(
    container: String,
    pause: bool,
    reply: Reply<()>,
    state: &State,
    effects: Effects,
) -> Option<Effect> {
    let (allowed, why_not) = if pause {
        (Process::can_pause as fn(&Process) -> bool, "is not running")
    } else {
        (Process::can_resume as fn(&Process) -> bool, "is not paused")
    };
    let id = ProcessId {
        container,
        exec: String::new(),
    };
    let allowed = require(state, &id, allowed, why_not);
    if let Err(error) = alive(&effects).and(allowed) {
        return answer(reply, Err(error));
    }
    Some(Box::pin(async move {
        let container = id.container;
        let guest = effects.guest.clone();
        let done = effects.ask(async {
            if pause {
                guest.pause(&container).await
            } else {
                guest.resume(&container).await
            }
        });
        let done = done.await;
        change(move |state| {
            if done.is_ok() {
                let processes = state.processes_mut(&container);
                processes.for_each(if pause {
                    Process::paused
                } else {
                    Process::resumed
                });
            }
            let _ = reply.send(done);
        })
    }))
}

fn delete(
    id: ProcessId,
    reply: Reply<Exit>,
    state: &mut State,
    effects: Effects,
) -> Option<Effect> {
    if let Err(error) = require(state, &id, Process::can_delete, "is running: stop it first") {
        return answer(reply, Err(error));
    }
    let hooks = state.hooks_of_init(&id);
    let Ok(process) = state.find_mut(&id) else {
        return None;
    };
    process.set_deleting(true);
    let known = process.exit();
    let mut end = process.watch();
    Some(Box::pin(async move {
        let act = async {
            let known = if effects.gone().is_some() {
                known
            } else {
                // A created container that was never started must end before it can be freed.
                if known.is_none() && id.exec.is_empty() {
                    effects.ask(effects.guest.kill(&id, SIGKILL, true)).await?;
                    let ended = tokio::time::timeout(super::DRAIN, end.wait_for(Option::is_some));
                    if ended.await.is_err() {
                        return Err(Error::Failed(format!("{} did not end", name(&id))));
                    }
                }
                free(&effects, &id).await?.or(known)
            };
            if id.exec.is_empty() {
                detach(&effects, &id.container).await?;
            }
            if let Some(hooks) = &hooks {
                host::owed::settle(hooks).await;
            }
            Ok(known)
        };
        let deleted = act.await;
        change(move |state| {
            let deleted = deleted.map(|exit| {
                let seen = state.find(&id).ok().and_then(Process::exit);
                state.remove(&id);
                // An exec that was never started has no exit of its own.
                seen.or(exit).unwrap_or(Exit {
                    pid: 0,
                    code: 0,
                    at: std::time::SystemTime::now(),
                })
            });
            if deleted.is_err()
                && let Ok(process) = state.find_mut(&id)
            {
                process.set_deleting(false);
            }
            let _ = reply.send(deleted);
        })
    }))
}

/// Frees a process in the guest. One that the guest does not know is free; so is everything in a
/// machine that is gone.
async fn free(effects: &Effects, id: &ProcessId) -> Result<Option<Exit>, Error> {
    let guest = effects.guest.clone();
    let freed = effects.ask(async {
        match guest.delete(id).await {
            Err(error) if error.is_not_found() => Ok(None),
            answer => answer.map(Some),
        }
    });
    match freed.await {
        Err(Error::VmGone(_)) => Ok(None),
        answer => answer,
    }
}

pub(super) fn change(change: impl FnOnce(&mut State) + Send + 'static) -> Change {
    Box::new(change)
}
