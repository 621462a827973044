//! Signals, and who may still get one.

use super::{SIGKILL, alive, answer, change, require};
use crate::{
    Error, ProcessId,
    driver::{
        Reply,
        effect::{Effect, Effects},
        process::Process,
        state::{State, name},
    },
};

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
pub(super) fn kill(
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
