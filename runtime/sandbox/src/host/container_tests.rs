use std::path::PathBuf;

use nix::mount::MsFlags;

use super::*;
use crate::{StdioRequest, host::own_mounts::in_own_mounts, plan::UNTRUSTED};

fn bind(index: usize, source: &Path, kind: SourceKind, read_only: bool) -> BindPlan {
    BindPlan {
        index,
        source: source.to_owned(),
        kind,
        read_only,
        recursive: true,
        propagation: Propagation::Private,
    }
}

fn plan(rootfs: &Path, binds: Vec<BindPlan>) -> ContainerPlan {
    ContainerPlan {
        id: "c1".into(),
        rootfs: vec![RootfsPlan::Bind {
            source: rootfs.to_owned(),
            recursive: true,
            read_only: false,
        }],
        binds,
        spec_json: Vec::new(),
        hooks: Default::default(),
        stdio: StdioRequest::default(),
    }
}

/// A pod, a root filesystem with a file, and a volume with a mount in it.
fn prepare(state: &Path) -> (PodPaths, PathBuf, PathBuf) {
    let pod = PodPaths::new(&state.join("isopod"), "test", "pod");
    pod_dir::create(&pod).unwrap();
    let rootfs = state.join("rootfs");
    fs::create_dir(&rootfs).unwrap();
    fs::write(rootfs.join("file"), "root").unwrap();
    let volume = state.join("volume");
    fs::create_dir_all(volume.join("sub")).unwrap();
    mount::filesystem("tmpfs", "x", &volume.join("sub"), MsFlags::empty(), "").unwrap();
    fs::write(volume.join("sub/file"), "sub").unwrap();
    (pod, rootfs, volume)
}

fn is_read_only(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
}

#[test]
fn rootfs_and_volumes_appear_with_their_flags_and_go_without_a_trace() {
    in_own_mounts(|state| {
        let (pod, rootfs, volume) = prepare(state);
        let before = mount::mounts_beneath(state).unwrap().len();
        let binds = vec![
            bind(0, &volume, SourceKind::Directory, true),
            bind(1, &volume, SourceKind::Directory, false),
            bind(2, &rootfs.join("file"), SourceKind::File, true),
        ];
        attach(&pod, &plan(&rootfs, binds)).unwrap();
        let shared = pod.container("c1").shared;
        assert_eq!(
            fs::read_to_string(shared.join("rootfs/file")).unwrap(),
            "root"
        );
        fs::write(shared.join("rootfs/new"), "").unwrap();
        assert_eq!(fs::read_to_string(shared.join("mounts/2")).unwrap(), "root");
        assert!(is_read_only(fs::write(shared.join("mounts/2"), "")));
        // Read-only to the last submount; the volume itself is as it was.
        for read_only in ["mounts/0/x", "mounts/0/sub/x"] {
            assert!(
                is_read_only(fs::write(shared.join(read_only), "")),
                "{read_only}"
            );
        }
        for writable in ["mounts/1/x", "mounts/1/sub/x"] {
            fs::write(shared.join(writable), "").unwrap();
        }
        fs::write(volume.join("sub/y"), "").unwrap();
        for found in mount::mounts_beneath(&shared).unwrap() {
            assert!(found.flags.contains(UNTRUSTED), "{found:?}");
        }
        detach(&pod, "c1").unwrap();
        assert_eq!(mount::mounts_beneath(state).unwrap().len(), before);
        assert!(!pod.container("c1").tree.exists());
        detach(&pod, "c1").unwrap();
        assert!(volume.join("sub/x").exists() && rootfs.join("new").exists());
        pod_dir::remove(&pod).unwrap();
    });
}

#[test]
fn a_failure_undoes_what_came_before() {
    in_own_mounts(|state| {
        let (pod, rootfs, volume) = prepare(state);
        let before = mount::mounts_beneath(state).unwrap().len();
        let binds = vec![
            bind(0, &volume, SourceKind::Directory, false),
            bind(1, &state.join("missing"), SourceKind::File, false),
        ];
        let error = attach(&pod, &plan(&rootfs, binds)).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
        assert_eq!(mount::mounts_beneath(state).unwrap().len(), before);
        assert!(!pod.container("c1").tree.exists());
        pod_dir::remove(&pod).unwrap();
    });
}

#[test]
fn a_source_that_changed_since_the_plan_is_refused() {
    in_own_mounts(|state| {
        let (pod, rootfs, volume) = prepare(state);
        let binds = vec![bind(0, &volume, SourceKind::File, false)];
        let error = attach(&pod, &plan(&rootfs, binds)).unwrap_err();
        assert!(matches!(error, HostError::Changed { .. }), "{error}");
        pod_dir::remove(&pod).unwrap();
    });
}

#[test]
fn a_second_container_of_the_name_does_not_harm_the_first() {
    in_own_mounts(|state| {
        let (pod, rootfs, _) = prepare(state);
        let plan = plan(&rootfs, Vec::new());
        attach(&pod, &plan).unwrap();
        attach(&pod, &plan).unwrap_err();
        assert!(pod.container("c1").shared.join("rootfs/file").exists());
        detach(&pod, "c1").unwrap();
        pod_dir::remove(&pod).unwrap();
    });
}

#[test]
fn later_mounts_of_the_host_arrive_when_asked_for() {
    in_own_mounts(|state| {
        let none = None::<&str>;
        nix::mount::mount(none, state, none, MsFlags::MS_SHARED, none).unwrap();
        let (pod, rootfs, volume) = prepare(state);
        let mut with = bind(0, &volume, SourceKind::Directory, false);
        with.propagation = Propagation::FromHost;
        let without = bind(1, &volume, SourceKind::Directory, false);
        attach(&pod, &plan(&rootfs, vec![with, without])).unwrap();
        fs::create_dir(volume.join("late")).unwrap();
        mount::filesystem("tmpfs", "x", &volume.join("late"), MsFlags::empty(), "").unwrap();
        fs::write(volume.join("late/file"), "").unwrap();
        let shared = pod.container("c1").shared;
        assert!(shared.join("mounts/0/late/file").exists());
        assert!(!shared.join("mounts/1/late/file").exists());
        detach(&pod, "c1").unwrap();
        assert!(volume.join("late/file").exists());
        pod_dir::remove(&pod).unwrap();
    });
}
