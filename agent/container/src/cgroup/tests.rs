use super::*;

fn setting(file: &str, value: &str, optional: bool) -> Setting {
    Setting {
        file: file.to_owned(),
        value: value.to_owned(),
        field: format!("field of {file}"),
        optional,
    }
}

/// A fake tree whose new cgroups have no files: what the kernel would make, the test makes.
fn tree() -> (tempfile::TempDir, Tree) {
    let directory = tempfile::tempdir().expect("tmp");
    let tree = Tree::new(directory.path());
    (directory, tree)
}

#[test]
fn controllers_that_the_kernel_has_are_handed_down() {
    let (directory, tree) = tree();
    fs::write(
        directory.path().join("cgroup.controllers"),
        "cpu memory pids rdma\n",
    )
    .expect("write");
    fs::write(directory.path().join("cgroup.subtree_control"), "").expect("write");
    tree.delegate().expect("delegated");
    let text = fs::read_to_string(directory.path().join("cgroup.subtree_control")).expect("read");
    assert_eq!(text, "+cpu +memory +pids");
}

#[test]
fn a_limit_that_cannot_be_set_leaves_no_cgroup_and_names_its_field() {
    let (directory, tree) = tree();
    let error = tree
        .make("a", &[setting("memory.max", "5", false)])
        .expect_err("no such file");
    assert!(
        error
            .to_string()
            .starts_with("field of memory.max: write \"5\" to memory.max: ")
    );
    assert!(!directory.path().join("container-a").exists());
    tree.make("a", &[setting("hugetlb.1GB.max", "0", true)])
        .expect("it limits nothing");
    assert!(matches!(tree.make("a", &[]), Err(CgroupError::Make { .. })));
}

#[test]
fn values_are_written_and_read() {
    let (_directory, tree) = tree();
    let cgroup = tree.make("a", &[]).expect("made");
    fs::write(cgroup.path().join("pids.max"), "").expect("write");
    cgroup.set(&[setting("pids.max", "7", false)]).expect("set");
    assert_eq!(cgroup.read("pids.max").expect("read").as_deref(), Some("7"));
    assert_eq!(cgroup.read("no.such").expect("no error"), None);
    fs::write(
        cgroup.path().join("memory.events"),
        "low 1\noom 3\noom_kill 2\noom_group_kill 9\n",
    )
    .expect("write");
    assert_eq!(cgroup.oom_kills().expect("read"), 2);
    fs::write(
        cgroup.path().join("cgroup.events"),
        "populated 1\nfrozen 1\n",
    )
    .expect("write");
    assert!(cgroup.is_frozen().expect("read"));
}

#[test]
fn processes_of_cgroups_below_count_too() {
    let (_directory, tree) = tree();
    let cgroup = tree.make("a", &[]).expect("made");
    fs::create_dir_all(cgroup.path().join("x/y")).expect("mkdir");
    fs::write(cgroup.path().join("cgroup.procs"), "1\n2\n").expect("write");
    fs::write(cgroup.path().join("x/y/cgroup.procs"), "3\n0\n").expect("write");
    let mut pids = cgroup.pids().expect("read");
    pids.sort_unstable();
    assert_eq!(pids, [1, 2, 3]);
}

#[test]
fn removing_takes_what_the_container_made_and_can_be_repeated() {
    let (_directory, tree) = tree();
    let cgroup = tree.make("a", &[]).expect("made");
    // Deeper than any stack.
    let mut deep = cgroup.path().to_owned();
    for _ in 0..300 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).expect("mkdir");
    cgroup.remove().expect("removed");
    assert!(!cgroup.path().exists());
    cgroup.remove().expect("already gone");
}
