//! The program as the sandbox starts it: what it serves, where its walls are, and when it ends.
//! Namespaces and mounts take root.

mod support;

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
};

use nix::mount::{MsFlags, mount};
use support::{
    front_end::FrontEnd,
    process::{Process, can_run},
    *,
};

fn connected(process: &mut Process) -> FrontEnd {
    let mut front = FrontEnd::start(process.socket.take().unwrap());
    front.init();
    front
}

#[test]
fn what_overlayfs_copies_up_stays_the_same_inode() {
    if !can_run("what_overlayfs_copies_up_stays_the_same_inode") {
        return;
    }
    let mut process = Process::ready(false);
    let mut guest = connected(&mut process);
    let place = process.shared().join("container");
    let layers = process.shared().join("layers");
    for dir in ["lower/etc", "upper", "work"] {
        fs::create_dir_all(layers.join(dir)).unwrap();
    }
    fs::create_dir(&place).unwrap();
    fs::write(layers.join("lower/etc/file"), "of the image").unwrap();
    let at = layers.display();
    let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
    let overlay = Some("overlay");
    mount(overlay, &place, overlay, MsFlags::empty(), Some(&*options)).unwrap();
    let mut look = || {
        let container = guest.lookup(ROOT, b"container").unwrap();
        let directory = guest.lookup(container, b"etc").unwrap();
        (directory, guest.lookup(directory, b"file").unwrap())
    };
    let before = look();
    // File systems count time in ticks: the copies are made later than what they are copies of.
    std::thread::sleep(std::time::Duration::from_millis(50));
    fs::write(place.join("etc/file"), "of the container").unwrap();
    assert!(layers.join("upper/etc/file").exists(), "copied up");
    assert_eq!(look(), before);
    assert_eq!(guest.read(before.1, 100).unwrap(), b"of the container");
}

#[test]
fn mounts_that_the_host_makes_later_arrive() {
    if !can_run("mounts_that_the_host_makes_later_arrive") {
        return;
    }
    let mut process = Process::ready(false);
    let mut guest = connected(&mut process);
    let place = process.shared().join("container");
    fs::create_dir(&place).unwrap();
    let before = guest.lookup(ROOT, b"container").unwrap();

    mount(
        Some("tmpfs"),
        &place,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    fs::write(place.join("hello"), "from the later mount").unwrap();
    let after = guest.lookup(ROOT, b"container").unwrap();
    assert_ne!(before, after, "another file system is another inode");
    let file = guest.lookup(after, b"hello").unwrap();
    assert_eq!(guest.read(file, 100).unwrap(), b"from the later mount");
    // The guest is told that a mount begins here (FUSE_ATTR_SUBMOUNT, the last word of the answer).
    let entry = guest.call(LOOKUP, ROOT, &name_of(b"container")).unwrap();
    assert_eq!(number(&entry, entry.len() - 4, 4), 1);

    // What the host unmounts goes away, although the guest remembers inodes of it.
    nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(guest.lookup(ROOT, b"container").unwrap(), before);
}

#[test]
fn files_belong_to_the_user_that_makes_them() {
    if !can_run("files_belong_to_the_user_that_makes_them") {
        return;
    }
    let mut process = Process::ready(false);
    let mut guest = connected(&mut process);
    let create = [words(&[0o2, 0o100666, 0o027, 0]), name_of(b"f")].concat();
    guest.call_as((1000, 2000), CREATE, ROOT, &create).unwrap();
    let meta = fs::metadata(process.shared().join("f")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o777),
        (1000, 2000, 0o640)
    );

    // The guest's kernel has allowed it (a supplementary group, say): the mode of the directory does
    // not stop it here, nor does another user's sticky directory.
    let private = process.shared().join("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o1700)).unwrap();
    let node = guest.lookup(ROOT, b"private").unwrap();
    guest.call_as((1000, 2000), CREATE, node, &create).unwrap();
    // A device node, as an image layer may have one.
    let device = [
        words(&[libc::S_IFCHR | 0o600, 0x0103, 0, 0]),
        name_of(b"null"),
    ]
    .concat();
    guest.call_as((1000, 1000), MKNOD, node, &device).unwrap();
    assert_eq!(
        fs::metadata(private.join("null")).unwrap().rdev(),
        libc::makedev(1, 3)
    );

    let trusted = |name: &[u8]| [words(&[1, 0]), name_of(name), b"v".to_vec()].concat();
    let file = guest.lookup(ROOT, b"private").unwrap();
    guest
        .call(SETXATTR, file, &trusted(b"trusted.overlay.opaque"))
        .unwrap();
    assert_eq!(
        guest.call(
            GETXATTR,
            file,
            &[words(&[10, 0]), name_of(b"trusted.overlay.opaque")].concat()
        ),
        Ok(b"v".to_vec())
    );
    assert_eq!(
        guest.call(
            SETXATTR,
            file,
            &trusted(b"user.isopod.trusted.overlay.opaque")
        ),
        Err(libc::EPERM)
    );
    let capability = [
        words(&[20, 0]),
        name_of(b"security.capability"),
        words(&[0x0200_0001, 1 << 10, 0, 0, 0]),
    ];
    guest.call(SETXATTR, file, &capability.concat()).unwrap();
}

#[test]
fn a_file_without_a_name_can_get_one() {
    if !can_run("a_file_without_a_name_can_get_one") {
        return;
    }
    let mut process = Process::ready(false);
    let mut guest = connected(&mut process);
    let body = [words(&[0o20200002, 0o100600, 0, 0]), name_of(b"/")].concat();
    let answer = guest.call_as((1000, 1000), TMPFILE, ROOT, &body).unwrap();
    let node = number(&answer, 0, 8);
    assert_eq!(fs::read_dir(process.shared()).unwrap().count(), 0);
    guest
        .call(LINK, ROOT, &[longs(&[node]), name_of(b"named")].concat())
        .unwrap();
    assert_eq!(
        fs::metadata(process.shared().join("named")).unwrap().uid(),
        1000
    );
}

#[test]
fn the_walls_are_where_they_should_be() {
    if !can_run("the_walls_are_where_they_should_be") {
        return;
    }
    let process = Process::ready(true);
    assert_eq!(
        process.status("NSpid").split_whitespace().last(),
        Some("1"),
        "its own PID namespace"
    );
    let names = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_SETGID \
                 CAP_SETUID CAP_MKNOD CAP_SETFCAP";
    let bits = [0, 1, 2, 3, 4, 6, 7, 27, 31]
        .iter()
        .fold(0u64, |mask, bit| mask | 1 << bit);
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(
            process.status(set),
            format!("{bits:016x}"),
            "{set} is not {names}"
        );
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(process.status(set), format!("{:016x}", 0), "{set}");
    }
    assert_eq!(process.status("NoNewPrivs"), "1");
    assert_eq!(process.status("Groups"), "");
    for thread in fs::read_dir(process.proc("task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(
            status.contains("\nSeccomp:\t2\n"),
            "a thread without filter: {status}"
        );
    }
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup", "pid"] {
        let link = format!("ns/{namespace}");
        let its = fs::read_link(process.proc(&link)).unwrap();
        let ours = fs::read_link(format!("/proc/1/ns/{namespace}"));
        let ours = ours
            .or_else(|_| fs::read_link(format!("/proc/self/ns/{namespace}")))
            .unwrap();
        assert_ne!(its, ours, "{namespace}");
    }
    // Its root is the shared directory and nothing else: one mount, no way up, no /proc.
    fs::write(process.shared().join("here"), "").unwrap();
    let root: Vec<_> = fs::read_dir(process.proc("root")).unwrap().collect();
    assert_eq!(root.len(), 1);
    assert!(fs::symlink_metadata(process.proc("root/../secret")).is_err());
    let mounts = fs::read_to_string(process.proc("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(mounts.contains(flag), "{mounts}");
    }
    // Nothing but loopback, which is down, in its network.
    let devices = fs::read_to_string(process.proc("net/dev")).unwrap();
    assert_eq!(
        devices.lines().filter(|line| line.contains(':')).count(),
        1,
        "{devices}"
    );
    let limits = fs::read_to_string(process.proc("limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"));
    // No descriptor leads to a directory or file of the host: sockets, pipes, events, the share's
    // root, and its own descriptors' names.
    for descriptor in fs::read_dir(process.proc("fd")).unwrap() {
        let path = descriptor.unwrap().path();
        let target = fs::read_link(&path).unwrap();
        let target = target.to_str().unwrap();
        let harmless = ["socket:", "pipe:", "anon_inode:", "/dev/null"];
        let own = target == "/"
            || target.ends_with("/fd")
            || harmless.iter().any(|h| target.starts_with(h));
        // Standard error is the test's own.
        let standard = matches!(path.file_name().unwrap().to_str(), Some("0" | "1" | "2"));
        assert!(own || standard, "{path:?} -> {target}");
    }
}

#[test]
fn it_ends_with_its_lifeline_even_before_a_front_end_came() {
    if !can_run("it_ends_with_its_lifeline_even_before_a_front_end_came") {
        return;
    }
    let mut process = Process::ready(true);
    drop(process.lifeline.take());
    assert_eq!(process.end().code(), Some(0));
}

#[test]
fn it_ends_with_its_lifeline_while_it_serves() {
    if !can_run("it_ends_with_its_lifeline_while_it_serves") {
        return;
    }
    let mut process = Process::ready(false);
    let mut guest = connected(&mut process);
    guest.lookup(ROOT, b"none").unwrap_err();
    drop(process.lifeline.take());
    assert_eq!(process.end().code(), Some(0));
}

#[test]
fn a_front_end_that_leaves_ends_it_cleanly() {
    if !can_run("a_front_end_that_leaves_ends_it_cleanly") {
        return;
    }
    let mut process = Process::ready(false);
    drop(connected(&mut process));
    assert_eq!(process.end().code(), Some(0));
}

#[test]
fn a_front_end_that_sends_garbage_ends_it_with_an_error() {
    if !can_run("a_front_end_that_sends_garbage_ends_it_with_an_error") {
        return;
    }
    let mut process = Process::ready(false);
    let mut socket = process.socket.take().unwrap();
    socket.write_all(&[0xff; 4096]).unwrap();
    let status = process.end();
    assert_eq!(status.code(), Some(1), "{status:?}");
}

#[test]
fn a_directory_that_is_no_mount_point_is_refused() {
    if !can_run("a_directory_that_is_no_mount_point_is_refused") {
        return;
    }
    let mut process = Process::start_with(false, |pod| pod.join("plain"));
    let mut line = String::new();
    process.ready.read_to_string(&mut line).unwrap();
    assert_eq!(line, "");
    assert_eq!(process.end().code(), Some(1));
}

/// What a driver had open goes with it, whether or not it said goodbye; the next one begins anew.
#[test]
fn a_reset_closes_what_the_driver_had_open() {
    if !can_run("a_reset_closes_what_the_driver_had_open") {
        return;
    }
    let mut process = Process::ready(false);
    let mut guest = connected(&mut process);
    let path = process.shared().join("f");
    fs::write(&path, "once").unwrap();
    let opened = |process: &Process| {
        let links = fs::read_dir(process.proc("fd")).unwrap();
        let targets = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
        targets.filter(|target| target.ends_with("f")).count()
    };
    for _ in 0..3 {
        let file = guest.lookup(ROOT, b"f").unwrap();
        assert_eq!(guest.read(file, 100).unwrap(), b"once");
        assert!(opened(&process) > 0, "what a guest reads is open");
        guest.reset();
        assert_eq!(opened(&process), 0);
        // The old driver's numbers mean nothing to the new one.
        guest.init();
        assert!(guest.read(file, 100).is_err());
    }
}

/// A guest's vsock is served by the same process; what it reaches on the host is only sockets of the
/// pod's directory.
#[test]
fn vsock_is_served_beside_files() {
    if !can_run("vsock_is_served_beside_files") {
        return;
    }
    let mut process = Process::ready(true);
    let _host = UnixListener::bind(process.pod.path().join("vsock_1026")).unwrap();
    let mut host = UnixStream::connect(process.pod.path().join("vsock.sock")).unwrap();
    host.write_all(b"CONNECT 1024\n").unwrap();
    // No driver yet: it waits; and the process serves files meanwhile.
    let mut guest = connected(&mut process);
    guest.lookup(ROOT, b"none").unwrap_err();
    drop(process.vsock.take());
    assert_eq!(process.end().code(), Some(0));
    let mut rest = String::new();
    let _ = host.read_to_string(&mut rest);
    assert_eq!(rest, "", "no connection was confirmed");
}
