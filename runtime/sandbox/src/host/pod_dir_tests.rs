use std::os::unix::{fs::symlink, net::UnixListener};

use super::*;
use crate::host::own_mounts::in_own_mounts;

fn pod(state: &Path) -> PodPaths {
    PodPaths::new(state, "test", "pod")
}

#[test]
fn a_pods_directory_is_made_and_removed_without_a_trace() {
    in_own_mounts(|state| {
        let paths = pod(&state.join("isopod"));
        create(&paths).unwrap();
        let _ready = UnixListener::bind(paths.port(1026)).unwrap();
        let _vsock = UnixListener::bind(paths.vsock()).unwrap();
        // Mount points are made in `tree` and seen in `shared`, where nobody can write.
        fs::create_dir(paths.tree().join("c1")).unwrap();
        assert!(paths.shared().join("c1").is_dir());
        let refused = fs::create_dir(paths.shared().join("c2")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        remove(&paths).unwrap();
        assert!(!paths.dir.exists());
        assert_eq!(mount::mounts_beneath(state).unwrap().len(), 1);
        remove(&paths).unwrap();
    });
}

#[test]
fn what_an_earlier_pod_left_is_no_obstacle() {
    in_own_mounts(|state| {
        let paths = pod(state);
        create(&paths).unwrap();
        fs::create_dir_all(paths.tree().join("c1/mounts/0")).unwrap();
        fs::write(paths.tree().join("c1/mounts/1"), "").unwrap();
        create(&paths).unwrap();
        assert!(!paths.tree().join("c1").exists());
        remove(&paths).unwrap();
    });
}

#[test]
fn mounts_of_the_pod_are_seen_by_a_slave_and_end_with_it() {
    in_own_mounts(|state| {
        let paths = pod(state);
        create(&paths).unwrap();
        let rootfs = paths.shared().join("c1/rootfs");
        fs::create_dir_all(paths.tree().join("c1/rootfs")).unwrap();
        // What isopod-fs does: a copy of the mount that is its slave.
        let copy = state.join("copy");
        fs::create_dir(&copy).unwrap();
        let flags = MsFlags::empty();
        mount::bind_directory(&paths.shared(), &copy, flags, MsFlags::MS_PRIVATE).unwrap();
        mount::detach(&copy).unwrap();
        let none = None::<&str>;
        nix::mount::mount(Some(&paths.shared()), &copy, none, MsFlags::MS_BIND, none).unwrap();
        nix::mount::mount(none, &copy, none, MsFlags::MS_SLAVE, none).unwrap();
        mount::filesystem("tmpfs", "x", &rootfs, UNTRUSTED, "").unwrap();
        fs::write(rootfs.join("file"), "content").unwrap();
        assert_eq!(
            fs::read_to_string(copy.join("c1/rootfs/file")).unwrap(),
            "content"
        );
        remove(&paths).unwrap();
        assert!(!copy.join("c1/rootfs/file").exists());
    });
}

#[test]
fn nothing_that_others_put_there_is_deleted() {
    in_own_mounts(|state| {
        let outside = state.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "").unwrap();
        let paths = pod(state);
        create(&paths).unwrap();
        symlink(&outside, paths.tree().join("link")).unwrap();
        fs::write(paths.tree().join("content"), "x").unwrap();
        let error = remove(&paths).unwrap_err().to_string();
        assert!(error.contains("left as it is"), "{error}");
        assert!(outside.join("precious").exists());
        assert!(paths.tree().join("content").exists());
        assert!(paths.tree().join("link").symlink_metadata().is_ok());
    });
}

#[test]
fn a_foreign_mount_stops_the_removal() {
    in_own_mounts(|state| {
        let paths = pod(state);
        create(&paths).unwrap();
        let foreign = paths.tree().join("foreign");
        fs::create_dir(&foreign).unwrap();
        mount::filesystem("tmpfs", "x", &foreign, UNTRUSTED, "").unwrap();
        fs::write(foreign.join("precious"), "").unwrap();
        assert!(remove(&paths).is_err());
        assert!(foreign.join("precious").exists());
    });
}
