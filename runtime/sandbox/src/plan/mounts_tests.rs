use std::io;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;

struct FakeHost;

impl HostFacts for FakeHost {
    fn kind_of(&self, path: &Path) -> io::Result<SourceKind> {
        match path.to_str() {
            Some("/srv/data" | "/bundle/relative") => Ok(SourceKind::Directory),
            Some("/etc/hosts" | "/var/lib/kubelet/pods/1/etc-hosts") => Ok(SourceKind::File),
            Some("/run/docker.sock") => Ok(SourceKind::Other("socket")),
            Some("/dev/sda") => Ok(SourceKind::Other("block device")),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn planned(mounts: Value) -> Result<(Vec<Mount>, Vec<BindPlan>), String> {
    let mut mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();
    let binds = plan_mounts("c1", Path::new("/bundle"), &mut mounts, &FakeHost);
    binds
        .map(|binds| (mounts, binds))
        .map_err(|error| error.to_string())
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    json!({"type": "bind", "source": source, "destination": destination, "options": options})
}

#[test]
fn binds_are_numbered_and_the_guest_is_told_where() {
    let (mounts, binds) = planned(json!([
        {"type": "proc", "source": "proc", "destination": "/proc"},
        bind("/srv/data", "/data", &["rbind", "rw"]),
        {"type": "tmpfs", "source": "tmpfs", "destination": "/tmp"},
        {"source": "/etc/hosts", "destination": "/etc/hosts", "options": ["bind", "ro"]},
    ]))
    .unwrap();
    let sources: Vec<_> = mounts
        .iter()
        .map(|mount| mount.source().clone().unwrap())
        .collect();
    let expected = [
        "proc",
        "/run/isopod/shared/c1/mounts/0",
        "tmpfs",
        "/run/isopod/shared/c1/mounts/1",
    ];
    assert_eq!(sources, expected.map(PathBuf::from));
    let expected = [
        BindPlan {
            index: 0,
            source: "/srv/data".into(),
            kind: SourceKind::Directory,
            read_only: false,
            recursive: true,
            propagation: Propagation::Private,
        },
        BindPlan {
            index: 1,
            source: "/etc/hosts".into(),
            kind: SourceKind::File,
            read_only: true,
            recursive: false,
            propagation: Propagation::Private,
        },
    ];
    assert_eq!(binds, expected);
}

#[rstest]
#[case("/host/shm", "/dev/shm", "/run/isopod/shm")]
#[case("/proc", "/host/proc", "/proc")]
#[case("/sys/fs/cgroup", "/sys/fs/cgroup", "/sys/fs/cgroup")]
#[case("/dev/null", "/masked", "/dev/null")]
#[case("/dev/fuse", "/dev/fuse", "/dev/fuse")]
fn the_guests_own_stand_for_these(#[case] source: &str, #[case] to: &str, #[case] guest: &str) {
    let (mounts, binds) = planned(json!([bind(source, to, &["rbind"])])).unwrap();
    assert_eq!(mounts[0].source().as_deref(), Some(Path::new(guest)));
    assert_eq!(binds, []);
}

#[rstest]
#[case(&["rbind"], Propagation::Private)]
#[case(&["rbind", "rprivate"], Propagation::Private)]
#[case(&["rbind", "rslave"], Propagation::FromHost)]
#[case(&["bind", "slave"], Propagation::FromHost)]
fn propagation_is_from_the_host_or_not_at_all(
    #[case] options: &[&str],
    #[case] propagation: Propagation,
) {
    let (_, binds) = planned(json!([bind("/srv/data", "/d", options)])).unwrap();
    assert_eq!(binds[0].propagation, propagation);
}

#[test]
fn relative_sources_begin_at_the_bundle() {
    let (_, binds) = planned(json!([bind("relative", "/d", &[])])).unwrap();
    assert_eq!(binds[0].source, Path::new("/bundle/relative"));
}

#[rstest]
#[case(bind("/run/docker.sock", "/s", &[]), &["mounts[0] (/s)", "/run/docker.sock is a socket"])]
#[case(bind("/dev/sda", "/s", &[]), &["/dev/sda is a block device"])]
#[case(bind("/missing", "/s", &[]), &["mounts[0] (/s)", "/missing", "not found"])]
#[case(bind("/srv/data", "/s", &["rshared"]), &["Bidirectional"])]
#[case(bind("/proc/../etc/shadow", "/s", &[]), &["contains `..`"])]
#[case(json!({"type": "bind", "destination": "/s"}), &["without a source"])]
fn what_cannot_cross_is_an_error_that_names_it(#[case] mount: Value, #[case] words: &[&str]) {
    let error = planned(json!([mount])).unwrap_err();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}
