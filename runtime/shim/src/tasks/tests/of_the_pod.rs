//! What concerns the pod as a whole: its one launch, many callers, its end.

use super::*;
use crate::bundle::ServerRecord;

#[tokio::test]
async fn questions_are_answered_while_a_container_is_made() {
    let f = fixture();
    f.running("a").await;
    f.fake.0.creates.forget_permits(usize::MAX);
    let tasks = f.tasks.clone();
    let request = f.request("b");
    let creation = tokio::spawn(async move { tasks.create(request).await });
    settle().await;
    assert_eq!(f.status("a", ""), Status::Running);
    let state = f.tasks.state(&process("b", ""));
    assert!(matches!(state, Err(Error::NotFound(_))));
    let kill = f.tasks.kill(process("b", ""), 9, false).await;
    assert!(matches!(kill, Err(Error::NotFound(_))));
    let delete = f.tasks.delete(process("b", "")).await;
    assert!(matches!(delete, Err(Error::NotFound(_))));
    let twice = f.create("b").await;
    assert!(matches!(twice, Err(Error::AlreadyExists(_))));
    f.tasks
        .kill(process("a", ""), 9, false)
        .await
        .expect("kills");
    f.fake.0.creates.add_permits(1);
    creation.await.expect("no panic").expect("creates");
    assert_eq!(f.status("b", ""), Status::Created);
}

#[tokio::test]
async fn a_dropped_connection_leaves_no_half_made_container() {
    let f = fixture();
    f.fake.0.creates.forget_permits(usize::MAX);
    // ttrpc drops the calls of a connection that broke.
    let dropped = time::timeout(Duration::from_millis(50), f.create("c")).await;
    assert!(dropped.is_err());
    f.fake.0.creates.add_permits(1);
    settle().await;
    assert_eq!(f.status("c", ""), Status::Created);
    assert_eq!(f.topics(), ["create"]);
}

#[tokio::test]
async fn one_launch_for_many_containers() {
    let f = fixture();
    let created = tokio::join!(f.create("a"), f.create("b"), f.create("c"));
    assert!(created.0.is_ok() && created.1.is_ok() && created.2.is_ok());
    assert_eq!(*lock(&f.fake.0.launched), 1);
}

#[tokio::test]
async fn every_containers_bundle_leads_to_the_pod() {
    let f = fixture();
    let other = fixture();
    f.create("a").await.expect("creates");
    let mut request = f.request("b");
    request.bundle = other.bundle.path().to_owned();
    f.tasks.create(request).await.expect("creates");
    for bundle in [&f.bundle, &other.bundle] {
        assert!(bundle.path().join("pod-record").exists());
        let server = ServerRecord::read(bundle.path()).expect("recorded");
        assert_eq!((server.pid, server.task_pid), (std::process::id(), VM));
    }
}

#[tokio::test]
async fn after_a_failed_launch_the_next_create_tries_again() {
    let f = fixture();
    *lock(&f.fake.0.fail_launches) = 1;
    let failed = f.create("c").await;
    assert!(matches!(failed, Err(Error::Failed(_))));
    assert_eq!(f.tasks.presence.borrow().containers, 0);
    assert!(f.topics().is_empty());
    f.create("c").await.expect("the name is free");
}

#[tokio::test]
async fn shutdown_is_ignored_until_the_last_container_is_gone() {
    let f = fixture();
    f.running("a").await;
    f.create("b").await.expect("creates");
    f.tasks.shutdown(false).await.expect("ignored");
    assert!(!f.tasks.presence.borrow().closing);
    f.tasks.delete(process("b", "")).await.expect("deletes");
    f.tasks.shutdown(false).await.expect("ignored");
    assert!(!f.fake.0.ended.load(Ordering::SeqCst));
    f.fake.end(&process("a", ""), 0);
    f.tasks.wait(&process("a", "")).await.expect("ends");
    f.tasks.delete(process("a", "")).await.expect("deletes");
    time::pause();
    f.tasks.shutdown(false).await.expect("ends");
    assert!(f.fake.0.ended.load(Ordering::SeqCst));
    assert!(f.tasks.presence.borrow().closed);
    let late = f.create("c").await;
    assert!(matches!(late, Err(Error::WrongState(_))));
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_up_a_launch_under_way() {
    let f = fixture();
    f.fake.0.launches.forget_permits(usize::MAX);
    let (tasks, request) = (f.tasks.clone(), f.request("c"));
    let creation = tokio::spawn(async move { tasks.create(request).await });
    settle().await;
    f.tasks.shutdown(false).await.expect("ends");
    assert!(f.fake.0.cleaned.load(Ordering::SeqCst));
    let failed = creation.await.expect("no panic");
    assert!(matches!(failed, Err(Error::Failed(_))), "{failed:?}");
    assert_eq!(f.tasks.presence.borrow().containers, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_containers_is_idle_after_its_patience() {
    let f = fixture();
    let patience = Duration::from_secs(30);
    let begin = time::Instant::now();
    f.tasks.idle(patience).await;
    assert_eq!(begin.elapsed().as_secs(), 30);
    f.running("c").await;
    let busy = time::timeout(patience * 10, f.tasks.idle(patience)).await;
    assert!(busy.is_err());
    f.fake.end(&process("c", ""), 0);
    f.tasks.wait(&process("c", "")).await.expect("ends");
    f.tasks.delete(process("c", "")).await.expect("deletes");
    f.tasks.idle(patience).await;
}
