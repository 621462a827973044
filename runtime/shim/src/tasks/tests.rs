//! Order and races, on a pod without a virtual machine.

mod fake;
mod of_the_pod;

use containerd_shim_protos::{
    events::task::{TaskExit, TaskOOM},
    protobuf::Message,
};
use isopod_sandbox::{Event, Status};

use self::fake::{VM, fixture, process, settle};
use super::*;

#[tokio::test]
async fn a_life_in_order() {
    let f = fixture();
    assert_eq!(f.create("c").await.expect("creates"), VM);
    assert_eq!(f.status("c", ""), Status::Created);
    assert_eq!(f.tasks.start(process("c", "")).await.expect("starts"), VM);
    assert_eq!(f.status("c", ""), Status::Running);
    f.fake.end(&process("c", ""), 3);
    let exit = f.tasks.wait(&process("c", "")).await.expect("ends");
    assert_eq!(exit.code, 3);
    assert_eq!(f.status("c", ""), Status::Stopped);
    let deleted = f.tasks.delete(process("c", "")).await.expect("deletes");
    assert_eq!((deleted.pid, deleted.exit.code), (VM, 3));
    assert_eq!(f.topics(), ["create", "start", "exit", "delete"]);
    let state = f.tasks.state(&process("c", ""));
    assert!(matches!(state, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn an_instant_exit_comes_after_its_start() {
    let f = fixture();
    f.fake.0.instant_exit.store(true, Ordering::SeqCst);
    f.running("c").await;
    f.tasks.wait(&process("c", "")).await.expect("ends");
    let late = f.exec("c", "e").await;
    assert!(matches!(late, Err(Error::WrongState(_))));
    assert_eq!(f.topics(), ["create", "start", "exit"]);
}

#[tokio::test]
async fn an_execs_instant_exit_comes_after_its_start() {
    let f = fixture();
    f.running("c").await;
    f.fake.0.instant_exit.store(true, Ordering::SeqCst);
    f.exec("c", "e").await.expect("adds");
    f.tasks.start(process("c", "e")).await.expect("starts");
    let exit = f.tasks.wait(&process("c", "e")).await.expect("ends");
    assert_eq!(exit.code, 3);
    f.tasks.delete(process("c", "e")).await.expect("deletes");
    assert_eq!(
        f.topics(),
        ["create", "start", "exec-added", "exec-started", "exit"]
    );
    let envelopes = f.tasks.events.queued();
    let event = &envelopes.last().expect("five").event;
    let exit = TaskExit::parse_from_bytes(&event.value).expect("decodes");
    assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("c", "e"));
}

#[tokio::test]
async fn memory_shortage_is_told_before_the_exit_it_caused() {
    let f = fixture();
    f.running("c").await;
    let container = "c".to_owned();
    let sent = f.fake.0.broadcast.send(Event::OutOfMemory { container });
    sent.expect("somebody listens");
    f.fake.end(&process("c", ""), 137);
    f.tasks.wait(&process("c", "")).await.expect("ends");
    assert_eq!(f.topics(), ["create", "start", "oom", "exit"]);
    let event = f.tasks.events.queued().swap_remove(2).event;
    let oom = TaskOOM::parse_from_bytes(&event.value).expect("decodes");
    assert_eq!(oom.container_id, "c");
}

#[tokio::test]
async fn a_never_started_container_is_deleted() {
    let f = fixture();
    f.create("c").await.expect("creates");
    let deleted = f.tasks.delete(process("c", "")).await.expect("deletes");
    assert_eq!(deleted.exit.code, 137);
    assert_eq!(f.topics(), ["create", "exit", "delete"]);
    assert_eq!(f.fake.calls(), ["kill c 9 false", "delete c "]);
}

#[tokio::test]
async fn a_running_container_is_not_deleted() {
    let f = fixture();
    f.running("c").await;
    let refused = f.tasks.delete(process("c", "")).await;
    assert!(matches!(refused, Err(Error::WrongState(_))));
    assert_eq!(f.status("c", ""), Status::Running);
}

#[tokio::test]
async fn of_two_deletes_one_succeeds() {
    let f = fixture();
    f.running("c").await;
    f.fake.end(&process("c", ""), 0);
    f.tasks.wait(&process("c", "")).await.expect("ends");
    let (a, b) = tokio::join!(
        f.tasks.delete(process("c", "")),
        f.tasks.delete(process("c", ""))
    );
    let not_found = |r: &Answer<_>| matches!(r, Err(Error::NotFound(_)));
    assert!(a.is_ok() && not_found(&b) || b.is_ok() && not_found(&a));
    assert_eq!(f.topics(), ["create", "start", "exit", "delete"]);
}

#[tokio::test]
async fn kills() {
    let f = fixture();
    let absent = f.tasks.kill(process("c", ""), 15, false).await;
    assert!(matches!(absent, Err(Error::NotFound(_))));
    f.create("c").await.expect("creates");
    f.exec("c", "e").await.expect("adds");
    let early = f.tasks.kill(process("c", "e"), 15, false).await;
    assert!(matches!(early, Err(Error::WrongState(_))));
    // Before Start: init is killed all the same.
    f.tasks
        .kill(process("c", ""), 9, true)
        .await
        .expect("kills");
    let exit = f.tasks.wait(&process("c", "")).await.expect("ends");
    assert_eq!(exit.code, 137);
    let late = f.tasks.kill(process("c", ""), 9, false).await;
    assert!(matches!(late, Err(Error::NotFound(_))));
    let start = f.tasks.start(process("c", "")).await;
    assert!(matches!(start, Err(Error::WrongState(_))));
}

#[tokio::test]
async fn a_failed_exec_start_frees_its_waiters_and_its_name() {
    let f = fixture();
    f.running("c").await;
    f.exec("c", "e").await.expect("adds");
    let again = f.exec("c", "e").await;
    assert!(matches!(again, Err(Error::AlreadyExists(_))));
    f.fake.0.fail_start.store(true, Ordering::SeqCst);
    let id = process("c", "e");
    let wait = tokio::spawn({
        let (tasks, id) = (f.tasks.clone(), id.clone());
        async move { tasks.wait(&id).await }
    });
    settle().await;
    assert!(f.tasks.start(id.clone()).await.is_err());
    let exit = wait.await.expect("no panic").expect("answered");
    assert_eq!(exit.code, 255);
    f.tasks.delete(id).await.expect("deletes");
    f.exec("c", "e").await.expect("the name is free");
}

#[tokio::test]
async fn pause_and_resume_by_state() {
    let f = fixture();
    f.create("c").await.expect("creates");
    let early = f.tasks.pause("c".into()).await;
    assert!(matches!(early, Err(Error::WrongState(_))));
    f.tasks.start(process("c", "")).await.expect("starts");
    f.tasks.pause("c".into()).await.expect("pauses");
    assert_eq!(f.status("c", ""), Status::Paused);
    let twice = f.tasks.pause("c".into()).await;
    assert!(matches!(twice, Err(Error::WrongState(_))));
    f.tasks.resume("c".into()).await.expect("resumes");
    assert_eq!(f.status("c", ""), Status::Running);
    assert_eq!(f.topics(), ["create", "start", "paused", "resumed"]);
}

#[tokio::test]
async fn pids_of_an_ended_container_are_not_empty() {
    let f = fixture();
    f.running("c").await;
    let both = f.tasks.pids("c").await.expect("known");
    assert_eq!(both, [(7, String::new()), (8, "e".to_owned())]);
    f.fake.end(&process("c", ""), 0);
    f.tasks.wait(&process("c", "")).await.expect("ends");
    let init = f.tasks.pids("c").await.expect("known");
    assert_eq!(init, [(7, String::new())]);
}

#[tokio::test]
async fn only_a_terminal_is_resized() {
    let f = fixture();
    f.running("c").await;
    let ignored = f.tasks.resize(process("c", ""), 80, 25).await;
    ignored.expect("there is nothing to do");
    let mut request = f.request("t");
    request.paths.terminal = true;
    f.tasks.create(request).await.expect("creates");
    let resized = f.tasks.resize(process("t", ""), 80, 25).await;
    resized.expect("resizes");
    assert_eq!(f.fake.calls(), ["resize 80 25"]);
}
