//! What has ended is freed: in the guest, then on the host.

use super::{SIGKILL, answer, change, detach, require};
use crate::{
    Error, Exit, ProcessId,
    driver::{
        DRAIN, Reply,
        effect::{Effect, Effects},
        process::Process,
        state::{State, name},
    },
    host,
};

pub(super) fn delete(
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
                    let ended = tokio::time::timeout(DRAIN, end.wait_for(Option::is_some));
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
