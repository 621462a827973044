use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::broadcast::Receiver,
};

use super::fake::{FakePod, pod};
use crate::{
    ContainerRequest, Created, Error, Event, ExecRequest, ProcessId, Status, StdioRequest,
    host::own_mounts::in_own_mounts,
};

/// Runs a test on a pod with a fake guest; what the pod made must be gone in the end.
pub(super) fn with_pod<F: Future<Output = FakePod>>(
    test: impl FnOnce(FakePod) -> F + Send + 'static,
) {
    in_own_mounts(move |state| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let act = async {
            let pod = test(pod(state).await).await;
            pod.sandbox.shutdown().await.unwrap();
            pod.sandbox.shutdown().await.unwrap();
            assert!(!pod.dir.exists());
            assert_eq!(names(pod.bundle.path()), ["rootfs"]);
        };
        let bounded = async { tokio::time::timeout(Duration::from_secs(60), act).await };
        runtime.block_on(bounded).expect("the test ends in time");
        assert_eq!(crate::host::mount::mounts_beneath(state).unwrap().len(), 1);
    });
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

pub(super) fn request(pod: &FakePod, id: &str) -> ContainerRequest {
    let spec = json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"},
        "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["sh"]},
    });
    ContainerRequest {
        id: id.into(),
        bundle: pod.bundle.path().into(),
        spec: serde_json::from_value(spec).unwrap(),
        rootfs: Vec::new(),
        stdio: StdioRequest {
            stdout: true,
            ..StdioRequest::default()
        },
    }
}

async fn create(pod: &FakePod, id: &str) -> Result<Created, Error> {
    pod.sandbox.create(request(pod, id)).await
}

pub(super) fn id(container: &str, exec: &str) -> ProcessId {
    ProcessId {
        container: container.into(),
        exec: exec.into(),
    }
}

fn exec_request() -> ExecRequest {
    let process = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["ls"]});
    ExecRequest {
        process: serde_json::from_value(process).unwrap(),
        stdio: StdioRequest::default(),
    }
}

async fn next(events: &mut Receiver<Event>) -> String {
    match events.recv().await.unwrap() {
        Event::Exited(id, exit) => format!("{}/{} {}", id.container, id.exec, exit.code),
        Event::OutOfMemory { container } => format!("oom {container}"),
        Event::VmGone(reason) => format!("gone: {reason}"),
    }
}

#[test]
fn the_guests_clock_is_set_before_anything_runs() {
    with_pod(|pod| async {
        let shown = Duration::from_nanos((*pod.agent.clock.lock().unwrap()).unsigned_abs());
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        assert!(now.abs_diff(shown) < Duration::from_secs(30), "{shown:?}");
        pod
    });
}

#[test]
fn a_container_lives_and_its_output_arrives() {
    with_pod(|mut pod| async {
        let mut events = pod.sandbox.events();
        let created = create(&pod, "c1").await.unwrap();
        assert_eq!(created.pid, 42);
        assert!(pod.dir.join("shared/c1/rootfs").is_dir());
        let (stream, mut guest) = pod.streams.recv().await.unwrap();
        assert_eq!(stream, 1);
        guest.write_all(b"hello").await.unwrap();
        drop(guest);
        let mut output = String::new();
        created
            .stdio
            .stdout
            .unwrap()
            .read_to_string(&mut output)
            .await
            .unwrap();
        assert_eq!(output, "hello");

        assert_eq!(pod.sandbox.start(id("c1", "")).await.unwrap(), 43);
        let state = pod.sandbox.state(id("c1", "")).await.unwrap();
        assert_eq!((state.status, state.pid), (Status::Running, 43));
        let refused = pod.sandbox.delete(id("c1", "")).await.unwrap_err();
        assert!(matches!(refused, Error::WrongState(_)), "{refused}");
        pod.agent.exit("c1", "", 3).await;
        assert_eq!(pod.sandbox.wait(id("c1", "")).await.unwrap().code, 3);
        assert_eq!(next(&mut events).await, "c1/ 3");
        let late = pod.sandbox.kill(id("c1", ""), 15, false).await.unwrap_err();
        assert!(matches!(late, Error::NotFound(_)), "{late}");
        assert_eq!(pod.sandbox.delete(id("c1", "")).await.unwrap().code, 3);
        assert!(!pod.dir.join("tree/c1").exists());
        let unknown = pod.sandbox.state(id("c1", "")).await.unwrap_err();
        assert!(matches!(unknown, Error::NotFound(_)), "{unknown}");
        pod
    });
}

#[test]
fn an_end_is_not_told_before_the_start() {
    with_pod(|pod| async {
        let mut events = pod.sandbox.events();
        create(&pod, "c1").await.unwrap();
        pod.agent.answers.send_replace(false);
        let sandbox = pod.sandbox.clone();
        let start = tokio::spawn(async move { sandbox.start(id("c1", "")).await });
        while !pod
            .agent
            .heard
            .lock()
            .unwrap()
            .contains(&"start c1".to_owned())
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        pod.agent.exit("c1", "", 0).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(events.try_recv().is_err());
        pod.agent.answers.send_replace(true);
        assert_eq!(start.await.unwrap().unwrap(), 43);
        assert_eq!(next(&mut events).await, "c1/ 0");
        pod
    });
}

#[test]
fn the_machines_end_is_the_end_of_everything() {
    with_pod(|pod| async {
        let mut events = pod.sandbox.events();
        create(&pod, "c1").await.unwrap();
        pod.sandbox.start(id("c1", "")).await.unwrap();
        pod.sandbox
            .exec(id("c1", "e"), exec_request())
            .await
            .unwrap();
        pod.sandbox.start(id("c1", "e")).await.unwrap();
        let sandbox = pod.sandbox.clone();
        let wait = tokio::spawn(async move { sandbox.wait(id("c1", "")).await });
        tokio::task::yield_now().await;
        pod.machine.send_replace(Some("it broke".into()));
        assert_eq!(next(&mut events).await, "c1/e 137");
        assert_eq!(next(&mut events).await, "c1/ 137");
        assert_eq!(next(&mut events).await, "gone: it broke");
        assert_eq!(wait.await.unwrap().unwrap().code, 137);
        let refused = create(&pod, "c2").await.unwrap_err();
        assert!(
            matches!(&refused, Error::VmGone(reason) if reason == "it broke"),
            "{refused}"
        );
        // The dead can be buried.
        assert_eq!(pod.sandbox.delete(id("c1", "e")).await.unwrap().code, 137);
        assert_eq!(pod.sandbox.delete(id("c1", "")).await.unwrap().code, 137);
        assert!(!pod.dir.exists());
        pod
    });
}

#[test]
fn a_create_under_way_fails_with_the_machines_reason() {
    with_pod(|pod| async {
        let mut events = pod.sandbox.events();
        pod.agent.answers.send_replace(false);
        let (sandbox, request) = (pod.sandbox.clone(), request(&pod, "c1"));
        let creating = tokio::spawn(async move { sandbox.create(request).await });
        while pod.agent.heard.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        pod.machine.send_replace(Some("it broke".into()));
        let failed = creating.await.unwrap().unwrap_err();
        assert!(
            matches!(&failed, Error::VmGone(reason) if reason == "it broke"),
            "{failed}"
        );
        assert_eq!(next(&mut events).await, "gone: it broke");
        pod
    });
}

#[test]
fn a_refused_create_leaves_nothing_and_keeps_its_class() {
    with_pod(|pod| async {
        let refusal = ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "process.cwd: bad");
        *pod.agent.refusal.lock().unwrap() = Some(refusal);
        let refused = create(&pod, "c1").await.unwrap_err();
        assert!(
            matches!(&refused, Error::InvalidArgument(text) if text == "process.cwd: bad"),
            "{refused}"
        );
        assert!(!pod.dir.join("tree/c1").exists());
        *pod.agent.refusal.lock().unwrap() = None;
        create(&pod, "c1").await.unwrap();
        let twice = create(&pod, "c1").await.unwrap_err();
        assert!(matches!(twice, Error::AlreadyExists(_)), "{twice}");
        pod
    });
}

#[test]
fn a_container_that_was_never_started_is_killed_and_freed() {
    with_pod(|pod| async {
        create(&pod, "c1").await.unwrap();
        assert_eq!(pod.sandbox.delete(id("c1", "")).await.unwrap().code, 137);
        let heard = pod.agent.heard.lock().unwrap().clone();
        assert_eq!(heard, ["create c1", "kill c1 9", "delete c1"]);
        pod
    });
}

#[test]
fn a_shutdown_asks_the_guest_and_ends_what_runs() {
    with_pod(|pod| async {
        let mut events = pod.sandbox.events();
        create(&pod, "c1").await.unwrap();
        pod.sandbox.start(id("c1", "")).await.unwrap();
        pod.sandbox.shutdown().await.unwrap();
        assert_eq!(next(&mut events).await, "c1/ 137");
        assert!(
            pod.agent
                .heard
                .lock()
                .unwrap()
                .contains(&"shutdown".to_owned())
        );
        assert!(!pod.dir.exists());
        let late = create(&pod, "c2").await.unwrap_err();
        assert!(matches!(late, Error::VmGone(_)), "{late}");
        pod
    });
}

#[test]
fn a_guest_that_does_not_answer_to_sigkill_is_given_up() {
    with_pod(|pod| async {
        let mut events = pod.sandbox.events();
        create(&pod, "c1").await.unwrap();
        pod.sandbox.start(id("c1", "")).await.unwrap();
        pod.agent.answers.send_replace(false);
        let slow = pod.sandbox.kill(id("c1", ""), 15, false).await.unwrap_err();
        assert!(matches!(slow, Error::Failed(_)), "{slow}");
        assert_eq!(
            pod.sandbox.state(id("c1", "")).await.unwrap().status,
            Status::Running
        );
        pod.sandbox.kill(id("c1", ""), 9, false).await.unwrap();
        assert_eq!(next(&mut events).await, "c1/ 137");
        let gone = next(&mut events).await;
        assert!(gone.starts_with("gone: the agent did not answer"), "{gone}");
        pod
    });
}
