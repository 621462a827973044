//! Pause and resume.

use super::{alive, answer, change, require};
use crate::{
    ProcessId,
    driver::{
        Reply,
        effect::{Effect, Effects},
        process::Process,
        state::State,
    },
};

pub(super) fn freeze(
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
