//! Create, start, exec, kill, delete, pause, and the illegal orders of them.

use std::time::Duration;

use isopod_protocol::agent::{Status, Stdio};
use serde_json::json;
use ttrpc::{Code, context::with_timeout};

use crate::guest::{Guest, status};

const CALL: i64 = 300_000_000_000;

#[tokio::test]
async fn exit_codes_and_signals() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    for (id, script, code) in [
        ("zero", "exit 0", 0),
        ("three", "exit 3", 3),
        ("max", "exit 255", 255),
        ("orphan", "sleep 0.05 & exit 4", 4),
    ] {
        let spec = guest.spec(&["sh", "-c", script], json!({}));
        assert_eq!(guest.run(id, &spec).await.0, code, "{id}");
        assert!(!guest.cgroup(id).exists());
    }
    for (signal, code) in [(9, 137), (34, 128 + 34)] {
        guest.sleeper("a", json!({})).await;
        guest.kill("a", "", signal, false).await.expect("kill");
        if signal != 9 {
            // The first process of a pid namespace ignores what it does not handle.
            tokio::time::sleep(Duration::from_millis(50)).await;
            guest.kill("a", "", 9, false).await.expect("still there");
            assert_eq!(guest.delete_when_ended("a").await, 137);
            continue;
        }
        assert_eq!(guest.delete_when_ended("a").await, code);
    }
    let spec = guest.spec(&["sh", "-c", "sh -c 'kill -34 $$'; exit $?"], json!({}));
    assert_eq!(guest.run("realtime", &spec).await.0, 128 + 34);
}

impl Guest {
    async fn delete_when_ended(&self, id: &str) -> u32 {
        for _ in 0..30_000 {
            if let Ok(exit) = self.delete(id, "").await {
                return exit.code;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{id} does not end");
    }
}

#[tokio::test]
async fn the_states_and_their_refusals() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let state = async |id: &str| {
        let response = guest
            .client
            .state(with_timeout(CALL), &Guest::process(id, ""))
            .await;
        response.expect("state").status.enum_value().expect("known")
    };
    let spec = guest.spec(&["sleep", "1000"], json!({}));
    let code = |result: ttrpc::Result<()>| status(result.expect_err("refused")).0;

    assert_eq!(
        code(guest.start_process("a", "").await.map(drop)),
        Code::NOT_FOUND
    );
    guest
        .create("a", &spec, Stdio::new())
        .await
        .expect("create");
    assert_eq!(state("a").await, Status::CREATED);
    assert_eq!(
        code(guest.create("a", &spec, Stdio::new()).await.map(drop)),
        Code::ALREADY_EXISTS
    );
    let container = Guest::container("a");
    assert_eq!(
        code(
            guest
                .client
                .pause(with_timeout(CALL), &container)
                .await
                .map(drop)
        ),
        Code::FAILED_PRECONDITION
    );

    guest.start_process("a", "").await.expect("start");
    assert_eq!(state("a").await, Status::RUNNING);
    assert_eq!(
        code(guest.start_process("a", "").await.map(drop)),
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        code(guest.delete("a", "").await.map(drop)),
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        code(
            guest
                .client
                .resume(with_timeout(CALL), &container)
                .await
                .map(drop)
        ),
        Code::FAILED_PRECONDITION
    );

    guest
        .client
        .pause(with_timeout(CALL), &container)
        .await
        .expect("pause");
    assert_eq!(state("a").await, Status::PAUSED);
    assert_eq!(
        code(guest.exec("a", "e", &spec["process"], Stdio::new()).await),
        Code::FAILED_PRECONDITION
    );
    guest
        .client
        .resume(with_timeout(CALL), &container)
        .await
        .expect("resume");
    assert_eq!(state("a").await, Status::RUNNING);

    guest.kill("a", "", 9, false).await.expect("kill");
    assert_eq!(guest.exit_of("a", "").await, 137);
    assert_eq!(state("a").await, Status::STOPPED);
    assert_eq!(code(guest.kill("a", "", 9, false).await), Code::NOT_FOUND);
    assert_eq!(
        code(guest.exec("a", "e", &spec["process"], Stdio::new()).await),
        Code::FAILED_PRECONDITION
    );
    assert_eq!(guest.delete("a", "").await.expect("delete").code, 137);
    assert_eq!(code(guest.delete("a", "").await.map(drop)), Code::NOT_FOUND);

    // One that was created and never started can go too, and its exit is told.
    guest
        .create("b", &spec, Stdio::new())
        .await
        .expect("create");
    assert_eq!(guest.delete("b", "").await.expect("delete").code, 137);
    assert_eq!(guest.exit_of("b", "").await, 137);
    assert_eq!(
        code(guest.create("../x", &spec, Stdio::new()).await.map(drop)),
        Code::INVALID_ARGUMENT
    );
}

#[tokio::test]
async fn execs_are_separate_processes_of_the_container() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.sleeper("a", json!({})).await;
    let process = |args: &[&str]| guest.spec(args, json!({}))["process"].clone();
    let exec = process(&[
        "sh",
        "-c",
        "hostname; grep ^0: /proc/self/cgroup; readlink /proc/1/exe; exit 5",
    ]);
    let (id, mut out) = guest.stream().await;
    let mut stdio = Stdio::new();
    stdio.stdout = id;
    guest.exec("a", "e", &exec, stdio).await.expect("exec");
    assert_eq!(
        status(
            guest
                .exec("a", "e", &exec, Stdio::new())
                .await
                .expect_err("twice")
        )
        .0,
        Code::ALREADY_EXISTS
    );
    let pid = guest.start_process("a", "e").await.expect("start");
    assert!(pid > 1);
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut out, &mut text)
        .await
        .expect("read");
    assert_eq!(text, "inside\n0::/\n/bin/busybox\n");
    assert_eq!(guest.exit_of("a", "e").await, 5);
    assert_eq!(guest.delete("a", "e").await.expect("delete").code, 5);

    for (args, message) in [(
        &["nosuch"],
        "unable to start container process: exec: \"nosuch\": executable file not found in $PATH",
    )] {
        guest
            .exec("a", "bad", &process(args), Stdio::new())
            .await
            .expect("registered");
        let failed = guest.start_process("a", "bad").await.expect_err(message);
        assert_eq!(status(failed), (Code::UNKNOWN, message.to_owned()));
        guest.delete("a", "bad").await.expect("delete");
    }
    let mut nowhere = process(&["true"]);
    nowhere["cwd"] = json!("/nowhere");
    guest
        .exec("a", "cwd", &nowhere, Stdio::new())
        .await
        .expect("registered");
    let failed = guest
        .start_process("a", "cwd")
        .await
        .expect_err("no such directory");
    let message = status(failed).1;
    assert!(
        message.contains(
            "chdir to cwd (\"/nowhere\") set in config.json failed: no such file or directory"
        ),
        "{message}"
    );

    // Its exec dies with the container, and both exits are told.
    guest
        .exec("a", "long", &process(&["sleep", "1000"]), Stdio::new())
        .await
        .expect("exec");
    guest.start_process("a", "long").await.expect("start");
    let pids = guest
        .client
        .pids(with_timeout(CALL), &Guest::container("a"))
        .await
        .expect("pids");
    assert_eq!(pids.processes.len(), 2);
    assert!(pids.processes.iter().any(|p| p.exec_id == "long"));
    guest.kill("a", "", 9, false).await.expect("kill");
    assert_eq!(guest.exit_of("a", "long").await, 137);
    assert_eq!(guest.exit_of("a", "").await, 137);
}

#[tokio::test]
async fn a_hundred_execs_at_once_lose_no_exit() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let guest = std::sync::Arc::new(guest);
    guest.sleeper("a", json!({})).await;
    let mut tasks = Vec::new();
    for index in 0..100u32 {
        let guest = std::sync::Arc::clone(&guest);
        tasks.push(tokio::spawn(async move {
            let exec = format!("e{index}");
            let script = format!("exit {}", index % 100);
            let process = guest.spec(&["sh", "-c", &script], json!({}))["process"].clone();
            guest
                .exec("a", &exec, &process, Stdio::new())
                .await
                .expect("exec");
            guest.start_process("a", &exec).await.expect("start");
            let code = guest.exit_of("a", &exec).await;
            guest.delete("a", &exec).await.expect("delete");
            code
        }));
    }
    for (index, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.expect("no panic"), index as u32);
    }
    guest.kill("a", "", 15, true).await.expect("kill all");
    guest.kill("a", "", 9, true).await.expect("kill all");
    assert_eq!(guest.exit_of("a", "").await, 137);
    guest.delete("a", "").await.expect("delete");
}

#[tokio::test]
async fn a_second_container_joins_the_pods_namespaces() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let join = json!({"hostname": null, "linux": {"namespaces": [
        {"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/proc/77/ns/net"},
        {"type": "ipc", "path": "/proc/77/ns/ipc"}, {"type": "uts", "path": "/proc/77/ns/uts"}]}});
    let spec = guest.spec(
        &[
            "sh",
            "-c",
            "hostname; readlink /proc/self/ns/uts; readlink /proc/self/ns/ipc",
        ],
        join,
    );
    let failed = guest
        .create("b", &spec, Stdio::new())
        .await
        .expect_err("nothing to join");
    assert_eq!(status(failed).0, Code::FAILED_PRECONDITION);
    guest.sleeper("pause", json!({})).await;
    let process = guest.spec(
        &[
            "sh",
            "-c",
            "readlink /proc/self/ns/uts; readlink /proc/self/ns/ipc",
        ],
        json!({}),
    )["process"]
        .clone();
    let (id, mut out) = guest.stream().await;
    let mut stdio = Stdio::new();
    stdio.stdout = id;
    guest
        .exec("pause", "e", &process, stdio)
        .await
        .expect("exec");
    guest.start_process("pause", "e").await.expect("start");
    let mut expected = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut out, &mut expected)
        .await
        .expect("read");
    let (code, stdout, _) = guest.run("b", &spec).await;
    assert_eq!((code, stdout), (0, format!("inside\n{expected}")));
}

#[tokio::test]
async fn a_hundred_short_containers_leave_nothing() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let spec = guest.spec(&["true"], json!({}));
    for round in 0..100 {
        let id = format!("c{round}");
        guest
            .create(&id, &spec, Stdio::new())
            .await
            .expect("create");
        guest.start_process(&id, "").await.expect("start");
        let code = guest.delete_when_ended(&id).await;
        assert_eq!(code, 0, "round {round}");
    }
    assert!(!guest.cgroup("c99").exists());
    let left = std::fs::read_dir(guest.cgroup("x").parent().expect("a parent"))
        .expect("cgroups")
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .count();
    assert_eq!(left, 0, "cgroups left");
}
