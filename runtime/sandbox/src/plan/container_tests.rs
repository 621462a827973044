use std::io;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;

struct FakeHost;

impl HostFacts for FakeHost {
    fn kind_of(&self, path: &Path) -> io::Result<SourceKind> {
        match path.to_str() {
            Some("/bundle/rootfs" | "/snapshots/1") => Ok(SourceKind::Directory),
            Some("/bundle/file") => Ok(SourceKind::File),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn request(root: &str, rootfs: Vec<RootfsMount>) -> ContainerRequest {
    let spec = json!({
        "ociVersion": "1.0.2", "root": {"path": root},
        "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "args": ["sh"]},
        "linux": {"namespaces": []},
    });
    ContainerRequest {
        id: "c1".into(),
        bundle: "/bundle".into(),
        spec: serde_json::from_value(spec).unwrap(),
        rootfs,
        stdio: StdioRequest::default(),
    }
}

fn mount(fstype: &str, source: &str, options: &[&str]) -> RootfsMount {
    RootfsMount {
        fstype: fstype.into(),
        source: source.into(),
        options: options.iter().map(ToString::to_string).collect(),
    }
}

fn rootfs(root: &str, mounts: Vec<RootfsMount>) -> Result<Vec<RootfsPlan>, String> {
    let planned = plan_container(&request(root, mounts), None, &FakeHost);
    planned
        .map(|plan| plan.rootfs)
        .map_err(|error| error.to_string())
}

#[test]
fn a_filesystem_is_mounted_as_it_was_named_and_never_trusted() {
    let overlay = mount("overlay", "overlay", &["ro", "lowerdir=/a:/b", "index=off"]);
    let disk = mount("ext4", "/dev/dm-3", &["discard", "exec", "dev", "suid"]);
    let planned = rootfs("rootfs", vec![overlay, disk]).unwrap();
    let filesystem = |fstype: &str, source: &str, flags, data: &str| RootfsPlan::Filesystem {
        fstype: fstype.into(),
        source: source.into(),
        flags,
        data: data.into(),
    };
    let expected = [
        filesystem(
            "overlay",
            "overlay",
            UNTRUSTED | MsFlags::MS_RDONLY,
            "lowerdir=/a:/b,index=off",
        ),
        filesystem("ext4", "/dev/dm-3", UNTRUSTED, "discard"),
    ];
    assert_eq!(planned, expected);
}

#[rstest]
#[case("rootfs", vec![], "/bundle/rootfs", true, false)]
#[case("/snapshots/1", vec![], "/snapshots/1", true, false)]
#[case("x", vec![mount("bind", "/snapshots/1", &["rbind", "ro"])], "/snapshots/1", true, true)]
#[case("x", vec![mount("none", "/snapshots/1", &["bind", "rw"])], "/snapshots/1", false, false)]
fn directories_are_bound(
    #[case] root: &str,
    #[case] mounts: Vec<RootfsMount>,
    #[case] source: &str,
    #[case] recursive: bool,
    #[case] read_only: bool,
) {
    let expected = RootfsPlan::Bind {
        source: source.into(),
        recursive,
        read_only,
    };
    assert_eq!(rootfs(root, mounts).unwrap(), [expected]);
}

#[rstest]
#[case("missing", vec![], "root.path: /bundle/missing")]
#[case("file", vec![], "root.path: /bundle/file is not a directory")]
#[case("x", vec![mount("bind", "/bundle/file", &[])], "is not a directory")]
#[case("x", vec![mount("bind", "/snapshots/1", &["bogus"])], "bogus")]
#[case("x", vec![mount("ext4", "/image.img", &["loop"])], "`loop`")]
#[case("x", vec![mount("", "/dev/sda", &[])], "rootfs[0]")]
fn wrong_root_filesystems_are_named(
    #[case] root: &str,
    #[case] mounts: Vec<RootfsMount>,
    #[case] word: &str,
) {
    let error = rootfs(root, mounts).unwrap_err();
    assert!(error.contains(word), "{error}");
}

#[test]
fn the_agent_gets_the_translated_spec() {
    let plan = plan_container(&request("rootfs", vec![]), None, &FakeHost).unwrap();
    let spec: Value = serde_json::from_slice(&plan.spec_json).unwrap();
    assert_eq!(spec["root"]["path"], "/run/isopod/shared/c1/rootfs");
    assert_eq!(spec["process"]["args"], json!(["sh"]));
}

#[test]
fn a_specification_that_no_agent_would_take_is_refused_here() {
    let mut request = request("rootfs", vec![]);
    let huge = "x".repeat(limits::SPEC_LEN);
    request.spec.set_hostname(Some(huge));
    let error = plan_container(&request, None, &FakeHost).unwrap_err();
    assert!(error.to_string().starts_with("config.json: "), "{error}");
}

#[test]
fn ids_with_slashes_are_refused() {
    let mut request = request("rootfs", vec![]);
    request.id = "../c2".into();
    assert!(plan_container(&request, None, &FakeHost).is_err());
}
