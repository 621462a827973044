//! Work that takes time, beside the driver's task.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::sync::watch;

use super::{Reply, growth::Growth, state::State};
use crate::{
    Error,
    driver::EXPLAIN,
    guest::{Guest, GuestError},
    plan::PodPaths,
};

/// What an effect does to the state when it ends.
pub(crate) type Change = Box<dyn FnOnce(&mut State) + Send>;

/// Work that ends in a change.
pub(crate) type Effect = Pin<Box<dyn Future<Output = Change> + Send>>;

/// What effects work with.
#[derive(Clone)]
pub(crate) struct Effects {
    pub guest: Arc<Guest>,
    pub paths: PodPaths,
    /// The machine's size.
    pub growth: Arc<Growth>,
    /// What hooks are told as a container's pid.
    pub machine_pid: u32,
    pub gone: watch::Receiver<Option<String>>,
}

impl Effects {
    /// Why the machine is gone, if it is.
    pub fn gone(&self) -> Option<String> {
        self.gone.borrow().clone()
    }

    /// Waits for the agent or for the end of its machine, whichever comes first. When the connection
    /// breaks, the machine's end is the better reason: it gets a moment to show.
    pub async fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, Error> {
        let mut gone = self.gone.clone();
        let answer = tokio::select! {
            biased;
            answer = request => answer,
            reason = reason(&mut gone) => return Err(Error::VmGone(reason)),
        };
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) if error.is_lost() => {
                match tokio::time::timeout(EXPLAIN, reason(&mut gone)).await {
                    Ok(reason) => Err(Error::VmGone(reason)),
                    Err(_) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A request whose answer changes nothing here.
    pub fn pass<T: Send + 'static>(
        self,
        reply: Reply<T>,
        request: impl Future<Output = Result<T, GuestError>> + Send + 'static,
    ) -> Effect {
        Box::pin(async move {
            let answer = self.ask(request).await;
            let _ = reply.send(answer);
            Box::new(|_: &mut State| {}) as Change
        })
    }
}

async fn reason(gone: &mut watch::Receiver<Option<String>>) -> String {
    let reason = gone.wait_for(Option::is_some).await;
    let reason = reason.ok().and_then(|reason| reason.clone());
    reason.unwrap_or_else(|| "the pod has ended".to_owned())
}
