//! An update of a container's limits: the machine grows before it and shrinks after it.

use oci_spec::runtime::LinuxResources;

use super::{alive, answer, change};
use crate::{
    Error,
    driver::{
        Reply,
        effect::{Effect, Effects},
        state::State,
    },
    plan,
};

pub(super) fn update(
    container: String,
    mut resources: LinuxResources,
    reply: Reply<()>,
    state: &mut State,
    effects: Effects,
) -> Option<Effect> {
    let before = state.demand(&container);
    let after = before.updated(&resources);
    let json = alive(&effects)
        .and_then(|()| state.init(&container).map(drop))
        .and_then(|()| Ok(plan::translate_resources(&mut resources)?))
        .and_then(|()| {
            let json = serde_json::to_vec(&resources);
            json.map_err(|error| Error::InvalidArgument(error.to_string()))
        });
    let json = match json {
        Ok(json) => json,
        Err(error) => return answer(reply, Err(error)),
    };
    state.set_demand(&container, before.max(after));
    Some(Box::pin(async move {
        let act = async {
            effects.growth.grow(&effects).await?;
            effects.ask(effects.guest.update(&container, json)).await
        };
        let updated = act.await;
        change(move |state| {
            // It may be gone meanwhile.
            if state.init(&container).is_ok() {
                let demand = if updated.is_ok() { after } else { before };
                state.set_demand(&container, demand);
            }
            let _ = reply.send(updated);
        })
    }))
}
