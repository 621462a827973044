//! The operations on containers and processes: what is allowed is decided here and now, what takes
//! time becomes an effect.

mod create;
mod delete;
mod exec;
mod freeze;
mod kill;
mod start;
mod update;

use std::future::Future;

use super::{
    Call, Reply,
    effect::{Change, Effect, Effects},
    process::Process,
    state::{State, name},
};
use crate::{Error, Exit, ProcessId, guest::GuestError, host};

const SIGKILL: u32 = 9;

/// Begins a call. Answers its effect, or nothing when the answer has been given.
pub(super) fn take(call: Call, state: &mut State, effects: Effects) -> Option<Effect> {
    match call {
        Call::Create(request, reply) => create::create(*request, reply, state, effects),
        Call::Exec(id, request, reply) => exec::exec(id, *request, reply, state, effects),
        Call::Start(id, reply) => start::start(id, reply, state, effects),
        Call::State(id, reply) => answer(reply, state.find(&id).map(Process::state)),
        Call::Wait(id, reply) => answer(reply, state.find(&id).map(Process::watch)),
        Call::Kill(id, signal, all, reply) => kill::kill(id, signal, all, reply, state, effects),
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
        Call::Delete(id, reply) => delete::delete(id, reply, state, effects),
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
        Call::Pause(container, reply) => freeze::freeze(container, true, reply, state, effects),
        Call::Resume(container, reply) => freeze::freeze(container, false, reply, state, effects),
        Call::Update(container, resources, reply) => {
            update::update(container, *resources, reply, state, effects)
        }
        // The driver itself ends the pod.
        Call::Shutdown(_) => None,
    }
}

/// Answers at once. The caller may have gone: then nobody needs it.
fn answer<T>(reply: Reply<T>, result: Result<T, Error>) -> Option<Effect> {
    let _ = reply.send(result);
    None
}

/// Passes a request on to the agent, if it is allowed.
fn pass<T: Send + 'static>(
    allowed: Result<(), Error>,
    reply: Reply<T>,
    effects: Effects,
    request: impl Future<Output = Result<T, GuestError>> + Send + 'static,
) -> Option<Effect> {
    match allowed.and_then(|()| alive(&effects)) {
        Ok(()) => Some(effects.pass(reply, request)),
        Err(error) => answer(reply, Err(error)),
    }
}

fn alive(effects: &Effects) -> Result<(), Error> {
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

fn tell_early(state: &State, id: &ProcessId, early: Option<Exit>) {
    if let Some(exit) = early {
        state.tell(crate::Event::Exited(id.clone(), exit));
    }
}

/// Takes what is the container's off the host.
async fn detach(effects: &Effects, container: &str) -> Result<(), Error> {
    let (paths, container) = (effects.paths.clone(), container.to_owned());
    let detach = tokio::task::spawn_blocking(move || host::container::detach(&paths, &container));
    let detached = detach
        .await
        .map_err(|error| Error::Failed(error.to_string()))?;
    Ok(detached?)
}

fn change(change: impl FnOnce(&mut State) + Send + 'static) -> Change {
    Box::new(change)
}
