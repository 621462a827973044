//! Tries to pass each wall of `isopod-jail` from inside, with busybox as the program.

use std::{
    fs,
    io::{PipeReader, PipeWriter, Read},
    net::TcpListener,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};
use nix::sched::{CloneFlags, unshare};
use rstest::rstest;

const BUSYBOX: &str = "/bin/busybox";
const USER: u32 = 64_123;

/// Namespaces take root, and the programs of the tests are busybox's.
fn can_run(test: &str) -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "it takes root"
    } else if !Path::new(BUSYBOX).exists() {
        "there is no /bin/busybox (package busybox-static)"
    } else {
        return true;
    };
    println!("SKIPPED {test}: {reason}");
    false
}

struct Jail {
    options: Vec<String>,
    lifeline: Option<PipeWriter>,
    lifeline_end: PipeReader,
    extra: Vec<(OwnedFd, i32)>,
}

impl Jail {
    fn new() -> Self {
        let (lifeline_end, lifeline) = std::io::pipe().unwrap();
        Self {
            options: vec![],
            lifeline: Some(lifeline),
            lifeline_end,
            extra: vec![],
        }
    }

    /// Starts the program. The calling thread's later children are in the PID namespace made here, so
    /// every start takes a thread of its own.
    fn start(self, command: &[&str]) -> (Child, Option<PipeWriter>) {
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        let mut jail = Command::new(env!("CARGO_BIN_EXE_isopod-jail"));
        let (user, group) = (USER.to_string(), (USER + 1).to_string());
        jail.args([
            "--name",
            "test",
            "--uid",
            &user,
            "--gid",
            &group,
            "--lifeline",
            "10",
        ]);
        jail.args(&self.options)
            .args(["--bind-ro", BUSYBOX, "--", BUSYBOX])
            .args(command);
        let mut mappings = vec![FdMapping {
            parent_fd: self.lifeline_end.into(),
            child_fd: 10,
        }];
        let extra = self.extra.into_iter();
        mappings.extend(extra.map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        }));
        jail.fd_mappings(mappings).unwrap();
        jail.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        (jail.spawn().unwrap(), self.lifeline)
    }

    fn output(self, command: &[&str]) -> Output {
        thread::scope(|scope| {
            let child = scope.spawn(|| {
                let (child, lifeline) = self.start(command);
                // The parent thread must live as long as its child.
                let output = child.wait_with_output().unwrap();
                drop(lifeline);
                output
            });
            child.join().unwrap()
        })
    }
}

/// What a shell script in the jail prints.
fn shell(script: &str) -> String {
    let output = Jail::new().output(&["sh", "-c", script]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    text.replace("/bin/busybox: ", "")
}

#[rstest]
#[case::shadow("cat /etc/shadow", "No such file")]
#[case::proc("ls /proc/1", "No such file")]
#[case::sys("ls /sys/kernel", "No such file")]
#[case::root_home("ls /root", "No such file")]
#[case::host_tmp("ls /tmp", "No such file")]
#[case::up("ls /../../root", "No such file")]
#[case::write_root("echo > /x", "can't create /x")]
#[case::write_usr("echo > /usr/x", "can't create /usr/x")]
#[case::write_dev("echo > /dev/x", "can't create /dev/x")]
#[case::device("mknod /dev/mem c 1 1", "mknod")]
#[case::mount("mount -t tmpfs none /usr", "denied|not permitted|must be")]
#[case::remount("mount -o remount,rw /", "denied|not permitted|must be|/proc/mounts")]
#[case::unmount("umount /usr", "not permitted|denied|can't|must be")]
#[case::chroot("chroot / /usr/bin/busybox true", "not permitted")]
#[case::user_namespace("unshare -U true", "not permitted")]
#[case::mount_namespace("unshare -m true", "not permitted")]
#[case::hostname("hostname x", "not permitted|must be|denied")]
#[case::root_again(
    "setuidgid 0 true 2>&1 || su -c true",
    "not permitted|unknown|must be|can't|not found"
)]
#[case::change_owner("chown 0 /bin/busybox", "Read-only|not permitted")]
fn an_attempt_fails(#[case] attempt: &str, #[case] complaints: &str) {
    if !can_run("an_attempt_fails") {
        return;
    }
    let said = shell(&format!("{attempt}; echo status $?"));
    assert!(!said.contains("status 0"), "{attempt} succeeded: {said}");
    assert!(
        complaints.split('|').any(|c| said.contains(c)),
        "{attempt}: {said}"
    );
}

#[test]
fn inside_it_sees_little() {
    if !can_run("inside_it_sees_little") {
        return;
    }
    let root = shell("ls /");
    let mut names: Vec<_> = root.split_whitespace().collect();
    names.retain(|name| !["bin", "sbin", "lib", "lib64", "lib32", "libx32"].contains(name));
    assert_eq!(names, ["dev", "etc", "usr"]);
    assert_eq!(shell("ls /dev").trim(), "null");
    assert_eq!(shell("id"), format!("uid={USER} gid={}\n", USER + 1));
    assert_eq!(shell("hostname").trim(), "isopod");
    assert_eq!(shell("echo $$").trim(), "1", "PID 1 of its namespace");
    assert_eq!(shell("ulimit -c").trim(), "0");
    assert_eq!(shell("ulimit -n").trim(), "4096");
    assert_eq!(shell("echo works > /dev/null && echo yes").trim(), "yes");
    let output = Jail::new().output(&["env"]);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "",
        "an empty environment"
    );
}

#[test]
fn the_hosts_network_and_processes_are_out_of_reach() {
    if !can_run("the_hosts_network_and_processes_are_out_of_reach") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let said = shell(&format!(
        "nc -w 2 127.0.0.1 {port} </dev/null; echo status $?"
    ));
    assert!(!said.contains("status 0"), "{said}");
    let pid = std::process::id();
    let said = shell(&format!("kill -0 {pid}; echo status $?"));
    assert!(!said.contains("status 0"), "{said}");
}

#[test]
fn from_outside_the_walls_show() {
    if !can_run("from_outside_the_walls_show") {
        return;
    }
    thread::spawn(|| {
        let (mut child, lifeline) = Jail::new().start(&["sh", "-c", "echo up; sleep 60"]);
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        let proc = Path::new("/proc").join(child.id().to_string());
        let status = fs::read_to_string(proc.join("status")).unwrap();
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t"));
            line.unwrap_or_else(|| panic!("{name} in {status}"))
                .trim()
                .to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs"), "1");
        assert_eq!(field("Seccomp"), "2");
        assert_eq!(
            field("Uid"),
            [USER; 4].map(|user| user.to_string()).join("\t")
        );
        assert_eq!(field("Groups"), "");
        for namespace in ["mnt", "net", "ipc", "uts", "cgroup", "pid"] {
            let link = |of: &Path| fs::read_link(of.join("ns").join(namespace)).unwrap();
            assert_ne!(link(&proc), link(Path::new("/proc/self")), "{namespace}");
        }
        for line in fs::read_to_string(proc.join("mountinfo")).unwrap().lines() {
            let flags = line.split(' ').nth(5).unwrap();
            assert!(flags.starts_with("ro,nosuid"), "{line}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        drop(lifeline);
    })
    .join()
    .unwrap();
}

#[test]
fn it_dies_with_the_thread_that_made_it() {
    if !can_run("it_dies_with_the_thread_that_made_it") {
        return;
    }
    let started = thread::spawn(|| {
        let (mut child, lifeline) = Jail::new().start(&["sh", "-c", "echo up; sleep 60"]);
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        (child, lifeline)
    });
    let (mut child, _lifeline) = started.join().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it lives on");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_an_owner_nothing_is_run() {
    if !can_run("without_an_owner_nothing_is_run") {
        return;
    }
    let mut jail = Jail::new();
    drop(jail.lifeline.take());
    let output = jail.output(&["echo", "ran"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("pod test: the owner is gone"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn only_named_descriptors_are_inherited() {
    if !can_run("only_named_descriptors_are_inherited") {
        return;
    }
    let (mut kept, kept_end) = std::io::pipe().unwrap();
    let (mut other, other_end) = std::io::pipe().unwrap();
    let mut jail = Jail::new();
    // A shell of one digit: busybox takes `>&8`, not `>&20`.
    jail.extra = vec![(kept_end.into(), 8), (other_end.into(), 9)];
    jail.options = ["--keep-fd", "8"].map(String::from).to_vec();
    let output = jail.output(&["sh", "-c", "echo kept >&8; echo other >&9; echo line >&10"]);
    let said = String::from_utf8(output.stderr).unwrap();
    let mut text = String::new();
    kept.read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept\n", "{said}");
    text.clear();
    other.read_to_string(&mut text).unwrap();
    assert_eq!(text, "", "{said}");
    assert!(
        said.to_lowercase().contains("bad file descriptor"),
        "{said}"
    );
}

#[test]
fn a_missing_program_is_named() {
    if !can_run("a_missing_program_is_named") {
        return;
    }
    let output = thread::spawn(|| {
        let (lifeline_end, _lifeline) = std::io::pipe().unwrap();
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        let mut jail = Command::new(env!("CARGO_BIN_EXE_isopod-jail"));
        jail.args([
            "--name",
            "p",
            "--uid",
            "9",
            "--gid",
            "9",
            "--lifeline",
            "10",
            "--",
            "/none",
        ]);
        let mapping = FdMapping {
            parent_fd: lifeline_end.into(),
            child_fd: 10,
        };
        jail.fd_mappings(vec![mapping]).unwrap();
        jail.output().unwrap()
    })
    .join()
    .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("/none") && said.contains("No such file"),
        "{said}"
    );
}
