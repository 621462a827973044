//! What is done to a container once it is made: signals to all of it, freezing, deletion.

use std::{fs, sync::Arc, time::Duration};

use isopod_container::{cgroup::Cgroup, state::State};
use isopod_protocol::agent::ExitStatus;

use crate::{
    fault::{Fault, act},
    pod::Pod,
    process::{Process, send_signal},
};

/// How long freezing may take: a process in an uninterruptible wait delays it.
const FREEZE_WAIT: Duration = Duration::from_secs(10);

/// How long a cgroup may take to empty after its processes were killed.
const EMPTY_WAIT: Duration = Duration::from_secs(10);

/// Sends a signal to every process of a container.
pub(crate) fn signal_all(pod: &Pod, id: &str, signal: i32) -> Result<(), Fault> {
    let container = pod.container(id)?;
    if signal == libc::SIGKILL {
        // Also what forks meanwhile.
        return Ok(container.cgroup.kill()?);
    }
    for pid in container.cgroup.pids()? {
        let Ok(pid) = i32::try_from(pid) else {
            continue;
        };
        match send_signal(pid, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(act(format!("signal process {pid}"), e)),
        }
    }
    Ok(())
}

/// Stops all processes of a container where they are, or lets them go on.
pub(crate) async fn freeze(pod: Arc<Pod>, id: String, frozen: bool) -> Result<(), Fault> {
    let container = pod.container(&id)?;
    let state = container.init.state();
    let (allowed, operation): (bool, _) = if frozen {
        (state.can_pause(), "pause")
    } else {
        (state.can_resume(), "resume")
    };
    state.require(allowed, operation, "container")?;
    container.cgroup.freeze(frozen)?;
    let began = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(1);
    while container.cgroup.is_frozen()? != frozen {
        if began.elapsed() > FREEZE_WAIT {
            container.cgroup.freeze(!frozen)?;
            return Err(act(operation, "the container's processes do not follow"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    // It may have ended meanwhile: then it stays stopped.
    container
        .init
        .step(if frozen { State::pause } else { State::resume })?;
    Ok(())
}

/// Forgets a process that has ended, and with the init its container; answers how it ended.
pub(crate) async fn delete(pod: Arc<Pod>, id: String, exec: String) -> Result<ExitStatus, Fault> {
    let process = pod.process(&id, &exec)?;
    let state = process.state();
    state.require(state.can_delete(), "delete", process.subject())?;
    if exec.is_empty() {
        return delete_container(&pod, &id, &process).await;
    }
    let container = pod.container(&id)?;
    let found = pod.exec(&id, &exec)?;
    if let Some((_, wiring)) = found.take_order() {
        pod.streams.give_up(wiring.ids());
    } else if state == State::Created {
        return Err(Fault::Precondition(
            "the process is being started".to_owned(),
        ));
    }
    container.execs().remove(&exec);
    Ok(process
        .exit()
        .map(|exit| exit.message())
        .unwrap_or_default())
}

async fn delete_container(pod: &Pod, id: &str, process: &Process) -> Result<ExitStatus, Fault> {
    let container = pod.container(id)?;
    if process.state() != State::Stopped {
        // Created and never started.
        container.cgroup.kill()?;
    }
    let exit = process.ended().await;
    clear_away(&container.cgroup).await;
    for exec in container.execs().values() {
        if let Some((_, wiring)) = exec.take_order() {
            pod.streams.give_up(wiring.ids());
        }
    }
    pod.remove(id);
    drop(container);
    pod.oom.tidy();
    // The file server holds every file that the guest remembers; the host is about to unmount them.
    let forgotten =
        tokio::task::spawn_blocking(|| fs::write("/proc/sys/vm/drop_caches", "2")).await;
    if let Ok(Err(e)) = forgotten {
        crate::log::warning(&format!("drop caches: {e}"));
    }
    Ok(exit.message())
}

/// Removes a cgroup, killing what is left in it; says so if it cannot.
pub(crate) async fn clear_away(cgroup: &Cgroup) {
    let began = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let Err(error) = cgroup.remove() else { return };
        if began.elapsed() > EMPTY_WAIT {
            crate::log::error(&error.to_string());
            return;
        }
        // Killed processes leave their cgroup when they are reaped, which needs this thread.
        let _ = cgroup.kill();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
