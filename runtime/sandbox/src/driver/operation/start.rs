//! What is made or registered runs.

use super::{SIGKILL, alive, answer, change, require, tell_early};
use crate::{
    Error, ProcessId,
    driver::{
        Reply,
        effect::{Effect, Effects},
        process::Process,
        state::State,
    },
    host,
    plan::HostHooks,
};

pub(super) fn start(
    id: ProcessId,
    reply: Reply<u32>,
    state: &mut State,
    effects: Effects,
) -> Option<Effect> {
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
