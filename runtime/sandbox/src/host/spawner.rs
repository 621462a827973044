//! The thread that starts a pod's processes.
//!
//! A thread of its own, because a process's death signal follows the *thread* that started it, and
//! because `unshare(CLONE_NEWPID)` is a property of a thread: every process started after it is PID 1
//! of a new namespace, so that its end takes everything it started with it.

use std::{
    fs::File,
    process::{Child, Command},
    sync::mpsc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::oneshot;

use super::HostError;

struct Order {
    command: Command,
    remedy: &'static str,
    reply: oneshot::Sender<Result<Child, HostError>>,
}

/// A handle to the thread, which ends when the last handle is gone. What it started with a death
/// signal ends with it.
#[derive(Clone)]
pub(crate) struct Spawner {
    orders: mpsc::Sender<Order>,
}

impl Spawner {
    /// Starts the thread.
    pub fn new() -> Result<Self, HostError> {
        let (orders, received) = mpsc::channel::<Order>();
        let body = move || {
            for order in received {
                // Nobody waits any more: the child ends by its lifeline.
                let _ = order.reply.send(spawn(order.command, order.remedy));
            }
        };
        thread::Builder::new()
            .name("spawner".into())
            .stack_size(128 << 10)
            .spawn(body)
            .map_err(|_| HostError::Spawner)?;
        Ok(Self { orders })
    }

    /// Starts a program as PID 1 of a new PID namespace. `remedy`: what to do when it is missing.
    pub async fn spawn(&self, command: Command, remedy: &'static str) -> Result<Child, HostError> {
        let (reply, answer) = oneshot::channel();
        let order = Order {
            command,
            remedy,
            reply,
        };
        self.orders.send(order).map_err(|_| HostError::Spawner)?;
        answer.await.map_err(|_| HostError::Spawner)?
    }
}

fn spawn(mut command: Command, remedy: &'static str) -> Result<Child, HostError> {
    let path = command.get_program().to_owned();
    let failed = |source| HostError::Spawn {
        path: path.clone().into(),
        source,
        remedy,
    };
    let own = File::open("/proc/thread-self/ns/pid").map_err(failed)?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| failed(errno.into()))?;
    let child = command.spawn();
    // Descriptors meant for the child are closed here, not when the command happens to be dropped.
    drop(command);
    let back = setns(&own, CloneFlags::CLONE_NEWPID);
    let child = child.map_err(failed)?;
    back.map_err(|errno| failed(errno.into()))?;
    Ok(child)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[tokio::test]
    async fn each_program_is_pid_1_of_a_namespace_of_its_own() {
        let spawner = Spawner::new().unwrap();
        for _ in 0..2 {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "echo $$"]).stdout(Stdio::piped());
            let child = spawner.spawn(command, "").await.unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n");
        }
    }

    #[tokio::test]
    async fn a_missing_program_is_named_with_the_remedy() {
        let spawner = Spawner::new().unwrap();
        let missing = spawner
            .spawn(Command::new("/nonexistent/program"), "install it")
            .await;
        let error = missing.unwrap_err().to_string();
        assert!(
            error.contains("/nonexistent/program") && error.contains("install it"),
            "{error}"
        );
        // The namespace of the failed attempt is not kept.
        let child = spawner.spawn(Command::new("/bin/true"), "").await;
        assert!(child.unwrap().wait().unwrap().success());
    }
}
