//! Groups in a tree of ordinary files, and in the hierarchies of this machine.

use std::process::{Child, Command};

use super::*;

const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/freezer rw,relatime shared:10 - cgroup cgroup rw,freezer
34 31 0:31 / /sys/fs/cgroup/my\\040memory rw,relatime - cgroup cgroup rw,memory
35 31 0:31 / /elsewhere rw,relatime - cgroup cgroup rw,memory
36 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
37 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
const UNIFIED: &str =
    "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

#[test]
fn hierarchies_are_found_by_their_controllers() {
    let expected = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/my memory"];
    assert_eq!(hierarchies(HYBRID.as_bytes()), expected.map(PathBuf::from));
    let expected = [PathBuf::from("/sys/fs/cgroup")];
    assert_eq!(hierarchies(UNIFIED.as_bytes()), expected);
    assert!(hierarchies(b"garbage - cgroup\n\n1 2 3 - cgroup2").is_empty());
}

#[test]
fn an_empty_group_is_the_shims() {
    let group = PodGroup::find(Path::new("")).unwrap();
    assert_eq!(group, PodGroup::default());
    group.create().unwrap();
    group.add(1).unwrap();
}

/// Version 2 as far as files show it: controllers are handed down from the root to the group's parent.
#[test]
fn a_group_of_version_2_gets_its_controllers_from_above() {
    let root = tempfile::tempdir().unwrap();
    for directory in ["", "kubepods"] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
        fs::write(
            root.path().join(directory).join("cgroup.subtree_control"),
            "",
        )
        .unwrap();
    }
    let leaf = root.path().join("kubepods/pod");
    let group = PodGroup {
        directories: vec![leaf.clone()],
    };
    assert_eq!(group.missing(), [leaf.as_path()]);
    group.create().unwrap();
    assert_eq!(group.missing(), Vec::<PathBuf>::new());
    group.add(17).unwrap();
    let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
    assert_eq!(read("cgroup.subtree_control"), "+pids");
    assert_eq!(read("kubepods/cgroup.subtree_control"), "+pids");
    assert_eq!(read("kubepods/pod/cgroup.procs"), "17");
    // A group that was there is somebody's: its limits stay as they are.
    fs::write(leaf.join("pids.max"), "max").unwrap();
    group.create().unwrap();
    assert_eq!(read("kubepods/pod/pids.max"), "max");
    // What is no control group is not removed, whatever a record says.
    remove(std::slice::from_ref(&leaf)).unwrap_err();
    assert!(leaf.exists());
}

/// Ends its child.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_is_moved_and_the_group_removed_after_it() {
    let name = format!("isopod-test-{}", std::process::id());
    let group = PodGroup::find(Path::new(&name)).unwrap();
    let made = group.missing();
    group.create().unwrap();
    let sleeper = Sleeper(Command::new("/bin/sleep").arg("1000").spawn().unwrap());
    let pid = sleeper.0.id();
    group.add(pid).unwrap();
    let most = group.directories.iter().map(|path| path.join("pids.max"));
    for most in most.filter(|path| path.exists()) {
        assert_eq!(fs::read_to_string(most).unwrap().trim(), TASKS_MAX);
    }
    let of_process = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let inside = of_process.lines().filter(|line| line.ends_with(&name));
    assert_eq!(inside.count(), group.directories.len(), "{of_process}");
    let killed = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(sleeper);
    });
    // Busy until the process has ended: waited for.
    remove(&made).unwrap();
    killed.join().unwrap();
    assert_eq!(group.missing(), made);
    remove(&made).unwrap();
    // Others in it keep it.
    group.create().unwrap();
    let other = Sleeper(Command::new("/bin/sleep").arg("1000").spawn().unwrap());
    group.add(other.0.id()).unwrap();
    remove(&made).unwrap();
    assert_eq!(group.missing(), Vec::<PathBuf>::new());
    drop(other);
    remove(&made).unwrap();
    assert_eq!(group.missing(), made);
    // A process that is gone is no error.
    group.create().unwrap();
    group.add(pid).unwrap();
    remove(&made).unwrap();
}
