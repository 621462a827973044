//! A caller whose connection ends in the middle of a call, for every call that the table says succeeds.
//!
//! Nothing is lost: the call has its whole effect or none, and each container's end is told once. Nothing
//! is left: whatever became of it can be ended and deleted, and the shim ends after its last container.
//! And the pod's first container does not notice.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context, Result, ensure};
use isopod_tests::{
    Bed, process,
    shim::{Code, Empty, Refusal, api},
};

use crate::{
    calls,
    subject::{POD, Pod, Subject},
};

/// From the request to the end of the connection: before it is read, and while it is worked on.
const DELAYS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(3)];
/// How long a shim gets until nothing moves any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Drops every call of the table that succeeds or waits.
pub fn run(bed: &Bed, text: &str) -> Result<()> {
    let mut events = bed.events()?;
    let pod = Pod::start(bed)?;
    let first = Subject::container(POD);
    drop_call(&pod, "Create", &first, DELAYS[1])?;
    created(&pod, &first)?;
    pod.act("Start", POD, "")?;
    let mut wrong = String::new();
    let mut containers = Vec::new();
    for (call, state, after) in calls::successes(text)? {
        // Of a shim that has no container yet only the creation above is of interest.
        for delay in DELAYS.into_iter().filter(|_| state != "empty") {
            let subject = pod.subject(state)?;
            let one = || -> Result<()> {
                let before = pod.shim.caller()?.status(&subject.id, &subject.exec)?.ok();
                drop_call(&pod, &call, &subject, delay)?;
                if call == "Create" {
                    created(&pod, &subject)?;
                }
                let allowed = [before, calls::status(after.as_deref(), before)];
                settled(&pod, &subject, &allowed)?;
                pod.end(&subject)?;
                pod.notices_nothing()
            };
            if let Err(error) = one() {
                writeln!(wrong, "{call} ({state}) after {delay:?}: {error:#}")?;
            }
            if state != "unknown" || call == "Create" {
                containers.push(subject.id);
            }
        }
    }
    let finished = pod.finish();
    ensure!(wrong.is_empty(), "{wrong}");
    finished?;
    for id in &containers {
        let own = |event: &isopod_tests::events::Event| event.text("id") == id;
        events.wait("/tasks/exit", own).context("its end is lost")?;
        let topics = events.topics_of(id);
        let deletes = topics.iter().filter(|topic| *topic == "/tasks/delete");
        ensure!(deletes.count() == 1, "{id}: {topics:?}");
    }
    Ok(())
}

fn drop_call(pod: &Pod<'_>, call: &str, subject: &Subject, delay: Duration) -> Result<()> {
    let (method, request) = pod.request(call, subject)?;
    let mut caller = pod.shim.caller()?;
    caller.send(method, request)?;
    std::thread::sleep(delay);
    Ok(())
}

/// Creates what may be there, or in the making: once, whoever asked for it.
fn created(pod: &Pod<'_>, subject: &Subject) -> Result<()> {
    let (method, request) = pod.request("Create", subject)?;
    let mut caller = pod.shim.caller()?;
    caller.send(method, request)?;
    let answer = caller.answer::<Empty>(PATIENCE)?;
    match answer.context("Create is not answered")? {
        Ok(_) => {}
        Err(Refusal {
            code: Code::ALREADY_EXISTS | Code::UNKNOWN,
            ..
        }) => {}
        Err(refusal) => anyhow::bail!("Create: {refusal:?}"),
    }
    caller.becomes(&subject.id, "", api::Status::CREATED)
}

/// Waits until it is in one of the states, and stays there: `None` is gone.
fn settled(pod: &Pod<'_>, subject: &Subject, allowed: &[Option<api::Status>]) -> Result<()> {
    let mut caller = pod.shim.caller()?;
    let mut last = Ok(api::Status::UNKNOWN);
    let mut same = 0;
    let waited = process::eventually("it settles", PATIENCE, || {
        let now = caller.status(&subject.id, &subject.exec)?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
        Ok((same >= 4 && allowed.contains(&now.ok())).then_some(()))
    });
    let unknown = !matches!(last, Ok(_) | Err(Code::NOT_FOUND));
    ensure!(
        waited.is_ok() && !unknown,
        "{last:?}, not one of {allowed:?}"
    );
    Ok(())
}
