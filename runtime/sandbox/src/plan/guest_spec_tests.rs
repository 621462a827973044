use rstest::rstest;
use serde_json::{Value, json};

use super::*;

fn translated(spec: Value, first_pid: Option<u32>) -> Result<Value, String> {
    let mut spec: Spec = serde_json::from_value(spec).unwrap();
    translate("c1", &mut spec, true, first_pid).map_err(|error| error.to_string())?;
    Ok(serde_json::to_value(spec).unwrap())
}

fn with_linux(linux: Value) -> Value {
    json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "linux": linux})
}

#[test]
fn what_names_the_host_is_translated_or_removed() {
    let process = json!({
        "cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["sh"], "terminal": false,
        "apparmorProfile": "cri-containerd.apparmor.d", "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2",
        "capabilities": {"bounding": ["CAP_CHOWN"]},
    });
    let spec = json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": true}, "process": process,
        "linux": {
            "cgroupsPath": "kubepods-burstable.slice:cri-containerd:abc", "mountLabel": "system_u:object_r:container_file_t:s0:c1,c2",
            "resources": {"cpu": {"cpus": "0-3", "mems": "0", "quota": 5000, "period": 10000}},
        },
    });
    let guest = translated(spec, None).unwrap();
    assert_eq!(guest["root"]["path"], "/run/isopod/shared/c1/rootfs");
    assert_eq!(guest["root"]["readonly"], true);
    assert_eq!(guest["process"]["terminal"], true);
    assert_eq!(guest["process"].get("apparmorProfile"), None);
    assert_eq!(guest["process"].get("selinuxLabel"), None);
    assert_eq!(
        guest["process"]["capabilities"]["bounding"],
        json!(["CAP_CHOWN"])
    );
    assert_eq!(guest["linux"]["cgroupsPath"], "/isopod/c1");
    assert_eq!(guest["linux"].get("mountLabel"), None);
    assert_eq!(
        guest["linux"]["resources"]["cpu"],
        json!({"quota": 5000, "period": 10000})
    );
}

#[rstest]
#[case(json!([{"type": "network"}]), None, json!([]))]
#[case(json!([{"type": "network", "path": "/var/run/netns/x"}]), None, json!([]))]
#[case(json!([{"type": "pid"}, {"type": "mount"}]), None, json!([{"type": "pid"}, {"type": "mount"}]))]
#[case(json!([{"type": "ipc"}]), Some(9), json!([{"type": "ipc"}]))]
#[case(
    json!([{"type": "ipc", "path": "/proc/77/ns/ipc"}, {"type": "uts", "path": "/proc/77/ns/uts"}]),
    Some(9),
    json!([{"type": "ipc", "path": "/proc/9/ns/ipc"}, {"type": "uts", "path": "/proc/9/ns/uts"}])
)]
#[case(json!([{"type": "pid", "path": "/proc/77/ns/pid"}]), Some(9), json!([{"type": "pid", "path": "/proc/9/ns/pid"}]))]
fn namespaces_are_the_pods(
    #[case] host: Value,
    #[case] first_pid: Option<u32>,
    #[case] guest: Value,
) {
    let found = translated(with_linux(json!({"namespaces": host})), first_pid).unwrap();
    assert_eq!(found["linux"]["namespaces"], guest);
}

#[rstest]
#[case(json!({"namespaces": [{"type": "ipc", "path": "/proc/77/ns/ipc"}]}), &["linux.namespaces[0]", "/proc/77/ns/ipc"])]
#[case(json!({"namespaces": [{"type": "user", "path": "/proc/77/ns/user"}]}), &["linux.namespaces[0]"])]
#[case(json!({"namespaces": [{"type": "mount", "path": "/proc/77/ns/mnt"}]}), &["linux.namespaces[0]"])]
#[case(json!({"devices": [{"type": "b", "path": "/dev/sda", "major": 8, "minor": 0}]}), &["linux.devices[0] (/dev/sda)"])]
#[case(json!({"devices": [{"type": "c", "path": "/dev/kvm", "major": 10, "minor": 232}]}), &["linux.devices[0] (/dev/kvm)"])]
#[case(json!({"intelRdt": {"closID": "x"}}), &["linux.intelRdt"])]
fn what_cannot_be_given_is_named(#[case] linux: Value, #[case] words: &[&str]) {
    let error = translated(with_linux(linux), None).unwrap_err();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

#[test]
fn devices_that_every_linux_has_are_kept() {
    let devices = json!([
        {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229},
        {"type": "p", "path": "/dev/pipe", "major": 0, "minor": 0},
    ]);
    let guest = translated(with_linux(json!({"devices": devices})), None).unwrap();
    assert_eq!(guest["linux"]["devices"], devices);
}

#[rstest]
#[case(json!({"apparmorProfile": "my-profile"}), json!({}), "process.apparmorProfile")]
#[case(json!({"selinuxLabel": "system_u:system_r:mine_t:s0"}), json!({}), "process.selinuxLabel")]
#[case(json!({"selinuxLabel": "nonsense"}), json!({}), "process.selinuxLabel")]
#[case(json!({}), json!({"mountLabel": "system_u:object_r:mine_t:s0"}), "linux.mountLabel")]
#[case(json!({}), json!({"resources": {"cpu": {"cpus": "zero"}}}), "linux.resources.cpu.cpus")]
#[case(json!({}), json!({"resources": {"cpu": {"mems": "3-1"}}}), "linux.resources.cpu.mems")]
#[case(json!({}), json!({"sysctl": {"net.core.somaxconn": "5"}}), "linux.sysctl[\"net.core.somaxconn\"]")]
fn what_would_be_ignored_is_refused(
    #[case] process: Value,
    #[case] linux: Value,
    #[case] field: &str,
) {
    let mut whole = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["sh"]});
    whole
        .as_object_mut()
        .unwrap()
        .extend(process.as_object().unwrap().clone());
    let spec =
        json!({"ociVersion": "1.0.2", "root": {"path": "r"}, "process": whole, "linux": linux});
    let error = translated(spec, None).unwrap_err();
    assert!(error.starts_with(&format!("{field}: ")), "{error}");
}

#[test]
fn the_pods_user_namespace_is_joined() {
    let linux = json!({"namespaces": [{"type": "user", "path": "/proc/77/ns/user"}]});
    let guest = translated(with_linux(linux), Some(9)).unwrap();
    assert_eq!(guest["linux"]["namespaces"][0]["path"], "/proc/9/ns/user");
}
