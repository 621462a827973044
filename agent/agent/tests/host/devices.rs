//! Device rules: what is denied when nothing is said, what a rule opens, and that an update replaces them.

use std::time::Duration;

use isopod_protocol::agent::UpdateRequest;
use serde_json::{Value, json};
use ttrpc::{Code, context::with_timeout};

use crate::guest::{Guest, status};

/// CAP_MKNOD, and a script: makes a node of /dev/fuse and tells whether it can be opened.
fn opening(guest: &Guest, devices: Value) -> Value {
    let caps = ["CAP_MKNOD", "CAP_CHOWN", "CAP_KILL"];
    guest.spec(
        &[
            "sh",
            "-c",
            "mknod /dev/f c 10 229 && if (: < /dev/f); then echo open; else echo denied; fi",
        ],
        json!({
            "process": {"capabilities": {"bounding": caps, "effective": caps, "permitted": caps}},
            "linux": {"resources": {"devices": devices}}
        }),
    )
}

#[tokio::test]
async fn rules_are_enforced() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let denied = json!([{"allow": false, "access": "rwm"}]);
    let opened = json!([{"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]);
    for (id, rules, expected) in [
        ("silent", Value::Null, "denied\n"),
        ("denied", denied, "denied\n"),
        ("opened", opened, "open\n"),
        ("all", json!([{"allow": true, "access": "rwm"}]), "open\n"),
    ] {
        let (code, out, err) = guest.run(id, &opening(&guest, rules)).await;
        assert_eq!((code, out.as_str()), (0, expected), "{id}: {err}");
    }
    let bad = guest.spec(
        &["true"],
        json!({"linux": {"resources": {"devices": [{"allow": true, "access": "x"}]}}}),
    );
    let refused = guest
        .create("bad", &bad, Default::default())
        .await
        .expect_err("refused");
    let (code, message) = status(refused);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(
        message.starts_with("linux.resources.devices[0].access: "),
        "{message}"
    );
}

#[tokio::test]
async fn an_update_replaces_the_rules() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let caps = ["CAP_MKNOD", "CAP_CHOWN", "CAP_KILL"];
    let spec = guest.spec(
        &[
            "sh",
            "-c",
            "mknod /tmp/f c 10 229; while ! (: < /tmp/f); do sleep 0.02; done 2> /dev/null; echo open; \
             while (: < /tmp/f); do sleep 0.02; done 2> /dev/null; echo shut; exit 6",
        ],
        json!({"process": {"capabilities": {"bounding": caps, "effective": caps, "permitted": caps}}}),
    );
    let (id, mut out) = guest.stream().await;
    let mut stdio = isopod_protocol::agent::Stdio::new();
    stdio.stdout = id;
    guest.create("a", &spec, stdio).await.expect("create");
    guest.start_process("a", "").await.expect("start");
    for (rules, expected) in [
        (
            json!([{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]),
            "open\n",
        ),
        (json!([{"allow": false, "access": "rwm"}]), "shut\n"),
    ] {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut update = UpdateRequest::new();
        update.container_id = "a".to_owned();
        update.resources_json = serde_json::to_vec(&json!({ "devices": rules })).expect("JSON");
        let updated = guest.client.update(with_timeout(60_000_000_000), &update);
        updated.await.expect("update");
        let mut line = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut out, &mut line)
            .await
            .expect("a line");
        assert_eq!(line, expected.as_bytes());
    }
    assert_eq!(guest.exit_of("a", "").await, 6);
}
