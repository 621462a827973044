//! A further process of a container is registered; `start` runs it.

use super::{alive, answer, change, tell_early};
use crate::{
    Error, ExecRequest, ProcessId, Stdio,
    driver::{
        Reply,
        effect::{Effect, Effects},
        process::Process,
        state::State,
    },
    plan, stdio,
};

pub(super) fn exec(
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
