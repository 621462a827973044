//! User and time namespaces, id-mapped and filled mounts, priorities, hooks of the guest.

use isopod_protocol::agent::Stdio;
use serde_json::{Value, json};

use crate::guest::{Guest, status};

/// A specification with a user namespace whose root is 100000 outside.
fn in_users(guest: &Guest, script: &str) -> Value {
    let mut spec = guest.spec(&["sh", "-c", script], json!({}));
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces.expect("a list").push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    // The root filesystem is not of this user namespace: nothing can be made in it.
    spec["root"]["readonly"] = json!(true);
    for name in ["proc", "dev", "sys", "run"] {
        std::fs::create_dir_all(guest.rootfs().join(name)).expect("mkdir");
    }
    std::fs::set_permissions(
        guest.tmp(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("chmod");
    spec
}

#[tokio::test]
async fn a_user_namespace_maps_and_confines() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "id -u; grep -c 100000 /proc/self/uid_map; echo x > /run/file; stat -c %u /run/file; \
        echo > /dev/null; head -c 1 /dev/zero | wc -c; hostname; \
        mknod /run/n c 1 3 2> /dev/null || echo confined; ls /sys/class > /dev/null && echo sys";
    let spec = in_users(&guest, script);
    let (code, out, err) = guest.run("a", &spec).await;
    assert_eq!(out, "0\n1\n0\n1\ninside\nconfined\nsys\n", "{err}");
    assert_eq!(code, 0);

    // An exec and a second container are in it too.
    let mut sleeper = in_users(&guest, "");
    sleeper["process"]["args"] = json!(["sleep", "1000"]);
    guest
        .create("b", &sleeper, Stdio::new())
        .await
        .expect("create");
    guest.start_process("b", "").await.expect("start");
    let script = "id -u; grep -c 100000 /proc/self/uid_map; readlink /proc/self/ns/user";
    let process = guest.spec(&["sh", "-c", script], json!({}))["process"].clone();
    let (id, mut out) = guest.stream().await;
    let mut stdio = Stdio::new();
    stdio.stdout = id;
    guest.exec("b", "e", &process, stdio).await.expect("exec");
    guest.start_process("b", "e").await.expect("start");
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut out, &mut text)
        .await
        .expect("read");
    assert!(text.starts_with("0\n1\nuser:"), "{text}");
}

#[tokio::test]
async fn a_second_container_joins_the_pods_user_namespace() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut first = in_users(&guest, "");
    first["process"]["args"] = json!(["sleep", "1000"]);
    guest
        .create("pause", &first, Stdio::new())
        .await
        .expect("create");
    guest.start_process("pause", "").await.expect("start");
    let mut second = in_users(
        &guest,
        "id -u; cat /proc/self/uid_map | tr -s ' '; echo $$; hostname",
    );
    second["hostname"] = Value::Null;
    second["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"},
        {"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "uts", "path": "/proc/7/ns/uts"},
        {"type": "user", "path": "/proc/7/ns/user"},
    ]);
    let (code, out, err) = guest.run("b", &second).await;
    assert_eq!(out, "0\n 0 100000 65536\n1\ninside\n", "{err}");
    assert_eq!(code, 0);
}

#[tokio::test]
async fn a_time_namespace_moves_the_clocks() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "tr -s ' ' < /proc/self/timens_offsets";
    let mut spec = guest.spec(&["sh", "-c", script], json!({}));
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces.expect("a list").push(json!({"type": "time"}));
    spec["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 7, "nanosecs": 5}});
    let (code, out, err) = guest.run("a", &spec).await;
    assert_eq!(out, "monotonic 7 5\nboottime 1000000 0\n", "{err}");
    assert_eq!(code, 0);
    spec["process"]["args"] = json!(["sleep", "1000"]);
    guest
        .create("b", &spec, Stdio::new())
        .await
        .expect("create");
    guest.start_process("b", "").await.expect("start");
    let process = guest.spec(&["sh", "-c", "exit 3"], json!({}))["process"].clone();
    guest
        .exec("b", "e", &process, Stdio::new())
        .await
        .expect("exec");
    guest.start_process("b", "e").await.expect("start");
    assert_eq!(guest.exit_of("b", "e").await, 3);
}

#[tokio::test]
async fn priorities_and_execution_domain() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let patch = json!({
        "process": {"scheduler": {"policy": "SCHED_BATCH", "nice": 5},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}},
        "linux": {"personality": {"domain": "LINUX32"}}
    });
    let script = "cut -d' ' -f19,41 /proc/1/stat; ionice -p 1; uname -m";
    let (code, out, err) = guest
        .run("a", &guest.spec(&["sh", "-c", script], patch))
        .await;
    assert_eq!(out, "5 3\nbest-effort: prio 6\ni686\n", "{err}");
    assert_eq!(code, 0);
}

#[tokio::test]
async fn a_tmpfs_that_begins_with_the_image() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = guest.spec(
        &[
            "sh",
            "-c",
            "cat /etc/plain; touch /etc/new && echo writable; stat -c %u /mapped",
        ],
        json!({"root": {"readonly": true}}),
    );
    std::fs::create_dir_all(guest.rootfs().join("mapped")).expect("mkdir");
    for name in ["proc", "dev", "sys", "run"] {
        std::fs::create_dir_all(guest.rootfs().join(name)).expect("mkdir");
    }
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let mounts = spec["mounts"].as_array_mut().expect("a list");
    mounts.push(json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}));
    mounts.push(
        json!({"destination": "/mapped", "type": "tmpfs", "source": "tmpfs", "uidMappings": map, "gidMappings": map}),
    );
    let (code, out, err) = guest.run("a", &spec).await;
    assert_eq!(out, "not a program\nwritable\n5000\n", "{err}");
    assert_eq!(code, 0);
}

#[tokio::test]
async fn hooks_of_the_guest() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let hook = |script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]);
    let hooks = |create: &str, start: &str| json!({"hooks": {"createContainer": hook(create), "startContainer": hook(start)}});
    let told = hooks("cat > /created; hostname > /who", "cat > /started");
    let script = "grep -o '\"status\":\"[a-z]*\"' /created /started; cat /who";
    let (code, out, err) = guest
        .run("a", &guest.spec(&["sh", "-c", script], told))
        .await;
    assert_eq!(
        out, "/created:\"status\":\"creating\"\n/started:\"status\":\"created\"\ninside\n",
        "{err}"
    );
    assert_eq!(code, 0);

    let failing = guest.spec(&["true"], hooks("exit 4", "true"));
    let failed = guest
        .create("b", &failing, Stdio::new())
        .await
        .expect_err("the first hook fails");
    assert_eq!(status(failed).1, "hooks.createContainer[0]: exit status 4");
    let failing = guest.spec(&["true"], hooks("true", "exit 5"));
    guest
        .create("c", &failing, Stdio::new())
        .await
        .expect("create");
    let failed = guest
        .start_process("c", "")
        .await
        .expect_err("the second fails");
    assert_eq!(status(failed).1, "hooks.startContainer[0]: exit status 5");

    let mut slow = guest.spec(&["true"], hooks("true", "true"));
    slow["hooks"]["createContainer"] =
        json!([{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]);
    let failed = guest
        .create("d", &slow, Stdio::new())
        .await
        .expect_err("too slow");
    assert!(status(failed).1.contains("ran past"));
}
