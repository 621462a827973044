use super::*;
use rstest::rstest;
use serde_json::{Value, json};

fn minimal() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "root": {"path": "/run/isopod/shared/c/rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}
    })
}

/// Sets the value at a JSON pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = minimal();
    let mut at = &mut spec;
    for key in pointer.trim_start_matches('/').split('/') {
        at = match key.parse::<usize>() {
            Ok(index) if at.is_array() => &mut at[index],
            _ => &mut at[key],
        };
    }
    *at = value;
    spec
}

fn parsed(spec: &Value) -> Result<Spec, SpecError> {
    parse_spec(&serde_json::to_vec(spec).expect("JSON"))
}

#[test]
fn a_minimal_one_passes() {
    parsed(&minimal()).expect("passes");
}

/// What containerd, its CRI plugin and Docker send although it is empty or means nothing here.
#[rstest]
#[case("/hooks", json!({}))]
#[case("/hooks", json!({"prestart": []}))]
#[case("/hooks", json!({"startContainer": [{"path": "/x", "timeout": 5}]}))]
#[case("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 1}))]
#[case("/process/scheduler", json!({"policy": "SCHED_FIFO", "priority": 99}))]
#[case("/linux/personality", json!({"domain": "LINUX32"}))]
#[case("/linux/namespaces/1", json!({"type": "time"}))]
#[case("/mounts/0", json!({"destination": "/proc/uptime", "type": "bind", "source": "/x"}))]
#[case("/mounts/0", json!({"destination": "/proc", "type": "bind", "source": "/proc"}))]
#[case("/process/apparmorProfile", json!(""))]
#[case("/process/apparmorProfile", json!("unconfined"))]
#[case("/process/selinuxLabel", json!(""))]
#[case("/linux/mountLabel", json!(""))]
#[case("/linux/intelRdt", json!({}))]
#[case("/linux/cgroupsPath", json!("kubepods-x.slice:cri-containerd:abc"))]
#[case("/linux/devices", json!([]))]
#[case("/linux/sysctl", json!({"net.ipv4.ping_group_range": "0 0"}))]
#[case("/linux/resources", json!({"devices": [{"allow": false, "access": "rwm"}], "blockIO": {},
    "network": {}, "hugepageLimits": [{"pageSize": "2MB", "limit": 0}], "rdma": {}}))]
#[case("/annotations", json!({"io.kubernetes.cri.container-type": "sandbox"}))]
#[case("/process/noSuchThing", json!(1))]
#[case("/linux/namespaces/1", json!({"type": "network", "path": "/proc/1/ns/net"}))]
#[case("/mounts/0/options", Value::Null)]
fn what_is_always_sent_passes(#[case] pointer: &str, #[case] value: Value) {
    parsed(&with(pointer, value)).expect("passes");
}

#[rstest]
#[case("/ociVersion", json!("2.0.0"), "ociVersion")]
#[case("/root", Value::Null, "root")]
#[case("/root/path", json!("rootfs"), "root.path")]
#[case("/process", Value::Null, "process")]
#[case("/process/args", json!([]), "process.args")]
#[case("/process/args", json!(["a\u{0}b"]), "process.args[0]")]
#[case("/process/env", json!(["A=\u{0}"]), "process.env[0]")]
#[case("/process/cwd", json!("relative"), "process.cwd")]
#[case("/process/cwd", json!(7), "process.cwd")]
#[case("/process/user/uid", json!(-1), "process.user.uid")]
#[case("/process/user/umask", json!(0o1000), "process.user.umask")]
#[case("/process/user/username", json!("web"), "process.user.username")]
#[case("/process/commandLine", json!("x"), "process.commandLine")]
#[case("/process/apparmorProfile", json!("cri-containerd.apparmor.d"), "process.apparmorProfile")]
#[case("/process/selinuxLabel", json!("a:b:c"), "process.selinuxLabel")]
#[case("/process/execCPUAffinity", json!({"initial": "0"}), "process.execCPUAffinity")]
#[case("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj")]
#[case("/process/rlimits", json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]), "process.rlimits[0]")]
#[case("/process/rlimits", json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1},
    {"type": "RLIMIT_CPU", "soft": 1, "hard": 1}]), "process.rlimits[1]")]
#[case("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "process.ioPriority.priority")]
#[case("/process/scheduler", json!({"policy": "SCHED_FIFO"}), "process.scheduler.priority")]
#[case("/process/scheduler", json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice")]
#[case("/process/scheduler", json!({"policy": "SCHED_OTHER", "priority": 1}), "process.scheduler.priority")]
#[case("/process/scheduler", json!({"policy": "SCHED_BATCH", "runtime": 1}), "process.scheduler.runtime")]
#[case("/process/scheduler", json!({"policy": "SCHED_ISO"}), "process.scheduler.policy")]
#[case("/mounts/0/options", json!(["tmpcopyup"]), "mounts[0].options")]
#[case("/mounts/0/options", json!(["idmap"]), "mounts[0].options")]
#[case("/mounts/0/uidMappings", json!([{"hostID": 0, "containerID": 0, "size": 1}]), "mounts[0].gidMappings")]
#[case("/mounts/0", json!({"destination": "/proc/1/attr", "type": "tmpfs"}), "mounts[0].destination")]
#[case("/mounts/0", json!({"destination": "/x/../proc", "type": "tmpfs"}), "mounts[0].destination")]
#[case("/mounts/0/destination", json!("proc"), "mounts[0].destination")]
#[case("/mounts/0/type", Value::Null, "mounts[0].type")]
#[case("/mounts/0", json!({"destination": "/x", "type": "bind"}), "mounts[0].source")]
#[case("/mounts/0", json!({"destination": "/x", "source": "rel", "options": ["rbind"]}), "mounts[0].source")]
#[case("/mounts/0", json!({"destination": "/x", "source": "/y", "options": ["bind", "size=1"]}), "mounts[0].options")]
#[case("/hooks", json!({"poststop": [{"path": "/x"}]}), "hooks.poststop")]
#[case("/hostname", json!("x"), "hostname")]
#[case("/windows", json!({"layerFolders": []}), "windows")]
#[case("/linux", Value::Null, "linux")]
#[case("/linux/namespaces", json!([]), "linux.namespaces")]
#[case("/linux/namespaces/1", json!({"type": "mount"}), "linux.namespaces[1]")]
#[case("/linux/namespaces/1", json!({"type": "cgroup", "path": "/x"}), "linux.namespaces[1].path")]
#[case("/linux/namespaces/0/path", json!("/x"), "linux.namespaces[0].path")]
#[case("/linux/namespaces/1", json!({"type": "user"}), "linux.uidMappings")]
#[case("/linux/namespaces/1", json!({"type": "time", "path": "/x"}), "linux.namespaces[1].path")]
#[case("/linux/timeOffsets", json!({"boottime": {"secs": 1}}), "linux.timeOffsets[\"boottime\"]")]
#[case("/linux/personality", json!({"domain": "LINUX32", "flags": ["X"]}), "linux.personality.flags")]
#[case("/linux/sysctl", json!({"vm.swappiness": "1"}), "linux.sysctl[\"vm.swappiness\"]")]
#[case("/linux/sysctl", json!({"kernel.shmmax": "1"}), "linux.sysctl[\"kernel.shmmax\"]")]
#[case("/linux/sysctl", json!({"kernel.hostname": "x"}), "linux.sysctl[\"kernel.hostname\"]")]
#[case("/hooks", json!({"startContainer": [{"path": "x"}]}), "hooks.startContainer[0].path")]
#[case("/hooks", json!({"createContainer": [{"path": "/x", "timeout": 0}]}), "hooks.createContainer[0].timeout")]
#[case("/linux/uidMappings", json!([{"hostID": 0, "containerID": 0, "size": 1}]), "linux.uidMappings")]
#[case("/linux/mountLabel", json!("x"), "linux.mountLabel")]
#[case("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt")]
#[case("/linux/rootfsPropagation", json!("sideways"), "linux.rootfsPropagation")]
#[case("/linux/devices", json!([{"path": "x", "type": "c", "major": 1, "minor": 3}]), "linux.devices[0].path")]
#[case("/linux/sysctl", json!({"net..x": "1"}), "linux.sysctl[\"net..x\"]")]
#[case("/linux/resources", json!({"memory": {"swappiness": 1}}), "linux.resources.memory.swappiness")]
#[case("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction")]
fn what_is_not_done_is_refused_by_its_path(
    #[case] pointer: &str,
    #[case] value: Value,
    #[case] field: &str,
) {
    let error = parsed(&with(pointer, value))
        .expect_err("refused")
        .to_string();
    assert!(error.starts_with(&format!("{field}: ")), "{error}");
}

fn in_a_user_namespace(uids: Value, user: Value) -> Value {
    let mut spec = with("/linux/namespaces/1", json!({"type": "user"}));
    spec["linux"]["uidMappings"] = uids;
    spec["linux"]["gidMappings"] = json!([{"hostID": 1000, "containerID": 0, "size": 10}]);
    spec["process"]["user"] = user;
    spec
}

#[rstest]
#[case(json!([]), json!({"uid": 0, "gid": 0}), "linux.uidMappings: ")]
#[case(json!([{"hostID": 5, "containerID": 1, "size": 10}]), json!({"uid": 1, "gid": 0}), "linux.uidMappings: ")]
#[case(json!([{"hostID": 5, "containerID": 0, "size": 0}]), json!({"uid": 0, "gid": 0}), "linux.uidMappings[0].size: ")]
#[case(json!([{"hostID": 4294967295u32, "containerID": 0, "size": 2}]), json!({"uid": 0, "gid": 0}), "linux.uidMappings[0].hostID: ")]
#[case(json!([{"hostID": 5, "containerID": 0, "size": 10}]), json!({"uid": 10, "gid": 0}), "process.user.uid: ")]
#[case(json!([{"hostID": 5, "containerID": 0, "size": 10}]), json!({"uid": 9, "gid": 10}), "process.user.gid: ")]
#[case(json!([{"hostID": 5, "containerID": 0, "size": 10}]), json!({"uid": 9, "gid": 1, "additionalGids": [11]}), "process.user.additionalGids: ")]
fn ids_that_cannot_be_mapped_are_refused(
    #[case] uids: Value,
    #[case] user: Value,
    #[case] field: &str,
) {
    let error = parsed(&in_a_user_namespace(uids, user))
        .expect_err("refused")
        .to_string();
    assert!(error.starts_with(field), "{error}");
}

#[test]
fn a_mapped_user_passes() {
    let uids = json!([{"hostID": 5, "containerID": 0, "size": 10}]);
    let user = json!({"uid": 9, "gid": 9, "additionalGids": [1]});
    parsed(&in_a_user_namespace(uids, user)).expect("passes");
}

#[test]
fn bytes_that_are_no_json_are_refused() {
    let error = parse_spec(b"{").expect_err("refused").to_string();
    assert!(error.starts_with("config.json: "), "{error}");
    assert!(parse_process(b"null").is_err());
    assert!(parse_resources(b"7").is_err());
}

#[test]
fn joining_needs_a_path() {
    let spec = parsed(&with(
        "/linux/namespaces",
        json!([{"type": "mount"}, {"type": "ipc", "path": ""}, {"type": "uts", "path": "/proc/1/ns/uts"}]),
    ))
    .expect("passes");
    let linux = spec.linux().as_ref().expect("there");
    assert!(!joins(linux, LinuxNamespaceType::Ipc));
    assert!(joins(linux, LinuxNamespaceType::Uts));
    assert!(!joins(linux, LinuxNamespaceType::Pid));
}
