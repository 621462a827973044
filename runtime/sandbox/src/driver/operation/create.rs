//! A container comes to be: on the host first, then in the guest.

use super::{alive, answer, change, detach, tell_early};
use crate::{
    ContainerRequest, Created, Error, ProcessId,
    driver::{
        Reply,
        effect::{Effect, Effects},
        state::State,
    },
    guest::StreamIds,
    host::{self, facts::Host},
    plan::{self, Demand, HostHooks},
    stdio,
};

/// Makes it, with its init process, which waits for its start.
pub(super) fn create(
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
