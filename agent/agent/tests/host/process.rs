//! What a process finds around itself.

use isopod_protocol::agent::Stdio;
use serde_json::json;
use ttrpc::Code;

use crate::guest::{Guest, status};

async fn output(guest: &Guest, id: &str, script: &str, patch: serde_json::Value) -> String {
    let spec = guest.spec(&["sh", "-c", script], patch);
    let (code, stdout, stderr) = guest.run(id, &spec).await;
    assert_eq!((code, stderr.as_str()), (0, ""), "{script}");
    stdout
}

#[tokio::test]
async fn identity_and_limits() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let none = json!({});
    assert_eq!(
        output(&guest, "a", "hostname; echo $$", none.clone()).await,
        "inside\n1\n"
    );
    assert_eq!(
        output(&guest, "b", "id -u; id -g; id -G; pwd; echo $HOME; umask; ulimit -n",
            json!({"process": {"user": {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027},
                               "cwd": "/new/dir"}})).await,
        "1000\n1001\n1001 5 6\n/new/dir\n/srv/web\n0027\n512\n"
    );
    let caps = "grep -E 'Cap|NoNew|Seccomp:' /proc/self/status | tr '\\t' ' '";
    // CHOWN 0, KILL 5, SETGID 6, SETUID 7, NET_BIND_SERVICE 10
    let five = "00000000000004e1";
    let zero = "0000000000000000";
    assert_eq!(
        output(&guest, "c", caps, none.clone()).await,
        format!(
            "CapInh: {zero}\nCapPrm: {five}\nCapEff: {five}\nCapBnd: {five}\nCapAmb: {zero}\nNoNewPrivs: 1\nSeccomp: 0\n"
        )
    );
    let kill = json!({"process": {"user": {"uid": 1000, "gid": 1000}, "noNewPrivileges": false,
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
                         "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}}});
    let one = "0000000000000020";
    assert_eq!(
        output(&guest, "d", caps, kill).await,
        format!(
            "CapInh: {one}\nCapPrm: {one}\nCapEff: {one}\nCapBnd: {one}\nCapAmb: {one}\nNoNewPrivs: 0\nSeccomp: 0\n"
        )
    );
    assert_eq!(
        output(
            &guest,
            "e",
            "cat /proc/self/oom_score_adj",
            json!({"process": {"oomScoreAdj": 345}})
        )
        .await,
        "345\n"
    );
}

#[tokio::test]
async fn nothing_of_the_agent_leaks() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let none = json!({});
    // 3 is the directory that ls itself reads.
    assert_eq!(
        output(&guest, "a", "ls /proc/self/fd", none.clone()).await,
        "0\n1\n2\n3\n"
    );
    assert_eq!(
        output(
            &guest,
            "b",
            "env | grep -v -E '^(PATH|HOME|SHLVL|PWD)='; true",
            none.clone()
        )
        .await,
        ""
    );
    assert_eq!(
        output(
            &guest,
            "c",
            "grep -E '^Sig(Ign|Blk|Cgt)' /proc/self/status | tr -d '\\t'",
            none.clone()
        )
        .await,
        "SigBlk:0000000000000000\nSigIgn:0000000000000000\nSigCgt:0000000000000000\n"
    );
    // No mount of the guest but the container's own.
    let mounts = output(
        &guest,
        "d",
        "cat /proc/self/mountinfo | wc -l",
        none.clone(),
    )
    .await;
    assert!(
        mounts.trim().parse::<u32>().expect("a number") < 25,
        "{mounts}"
    );
    assert_eq!(
        output(&guest, "e", "grep ^0: /proc/self/cgroup", none).await,
        "0::/\n"
    );
}

#[tokio::test]
async fn the_file_system() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let none = json!({});
    assert_eq!(
        output(
            &guest,
            "a",
            "cd /dev; ls | grep -v shm; for l in ptmx fd stdin; do readlink $l; done; stat -c '%a %F' null tty",
            none.clone()
        )
        .await,
        "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n\
         pts/ptmx\n/proc/self/fd\n/proc/self/fd/0\n666 character special file\n666 character special file\n"
    );
    let read_only = json!({"root": {"path": guest.rootfs(), "readonly": true}});
    assert_eq!(
        output(
            &guest,
            "b",
            "touch /x 2>/dev/null || echo no; touch /run/x && echo yes",
            read_only
        )
        .await,
        "no\nyes\n"
    );
    assert_eq!(
        output(
            &guest,
            "c",
            "cat /proc/keys | wc -c; echo 1 2>/dev/null >/proc/sys/kernel/panic || echo no",
            none.clone()
        )
        .await,
        "0\nno\n"
    );

    let source = guest.tmp().join("volume");
    std::fs::create_dir(&source).expect("mkdir");
    std::fs::write(source.join("file"), "content\n").expect("write");
    let bind = |options: &[&str]| {
        json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/volume/deep", "type": "bind", "source": source, "options": options},
            {"destination": "/file", "source": source.join("file"), "options": ["rbind", "ro"]},
        ]})
    };
    let script = "cat /volume/deep/file /file; touch /volume/deep/new 2>/dev/null && echo written || echo no";
    assert_eq!(
        output(&guest, "d", script, bind(&["rbind", "rprivate", "ro"])).await,
        "content\ncontent\nno\n"
    );
    assert_eq!(
        output(&guest, "e", script, bind(&["bind", "rw", "nosuid"])).await,
        "content\ncontent\nwritten\n"
    );
    assert!(source.join("new").exists());
    // A link in the image leads nowhere outside of it.
    std::os::unix::fs::symlink(guest.tmp(), guest.rootfs().join("escape")).expect("link");
    let escape = json!({"mounts": [
        {"destination": "/escape/made", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}]});
    let spec = guest.spec(&["true"], escape);
    let failed = guest
        .create("f", &spec, Stdio::new())
        .await
        .expect_err("the link is dangling inside");
    assert_eq!(status(failed).0, Code::UNKNOWN);
    assert!(!guest.tmp().join("made").exists());
}

#[tokio::test]
async fn a_command_that_cannot_run_fails_create_in_runcs_words() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let words = "unable to start container process: exec: ";
    for (command, reason) in [
        ("nosuch", "\"nosuch\": executable file not found in $PATH"),
        (
            "/nosuch",
            "\"/nosuch\": stat /nosuch: no such file or directory",
        ),
        ("/etc/plain", "\"/etc/plain\": permission denied"),
        ("/etc", "\"/etc\": permission denied"),
    ] {
        let spec = guest.spec(&[command], json!({}));
        let failed = guest
            .create("a", &spec, Stdio::new())
            .await
            .expect_err(command);
        assert_eq!(status(failed), (Code::UNKNOWN, format!("{words}{reason}")));
        assert!(!guest.cgroup("a").exists());
    }
    let spec = guest.spec(&["true"], json!({"process": {"cwd": "/etc/plain"}}));
    let failed = guest
        .create("a", &spec, Stdio::new())
        .await
        .expect_err("cwd");
    let (code, message) = status(failed);
    assert_eq!(code, Code::UNKNOWN);
    assert!(
        message.ends_with("\"/etc/plain\": not a directory"),
        "{message}"
    );
    assert!(
        guest
            .client
            .events(
                ttrpc::context::with_timeout(300_000_000),
                &Default::default()
            )
            .await
            .is_err(),
        "no event"
    );
}

#[tokio::test]
async fn what_is_not_supported_is_named() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    for (patch, message) in [
        (
            json!({"mounts": [{"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["nosuch=1"]}]}),
            "mounts[0].options: tmpfs refuses option \"nosuch=1\"",
        ),
        (
            json!({"mounts": [{"destination": "/x", "type": "nosuchfs", "source": "none"}]}),
            "mounts[0].type: ",
        ),
        (
            json!({"linux": {"namespaces": [{"type": "user"}, {"type": "mount"}]}}),
            "linux.uidMappings: a user namespace needs mappings",
        ),
        (
            json!({"process": {"apparmorProfile": "x"}}),
            "process.apparmorProfile: ",
        ),
        (
            json!({"hooks": {"prestart": [{"path": "/x"}]}}),
            "hooks.prestart: ",
        ),
        (
            json!({"linux": {"resources": {"unified": {"no.such": "1"}}}}),
            "linux.resources.unified[\"no.such\"]: ",
        ),
        (
            json!({"process": {"rlimits": [{"type": "RLIMIT_X", "hard": 1, "soft": 1}]}}),
            "process.rlimits[0].type: ",
        ),
    ] {
        let spec = guest.spec(&["true"], patch);
        let failed = guest
            .create("a", &spec, Stdio::new())
            .await
            .expect_err(message);
        let (code, text) = status(failed);
        assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
        assert!(text.starts_with(message), "{text} instead of {message}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_program_ends_as_with_runc() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let path = guest.rootfs().join("bin/bad");
    std::fs::write(&path, "garbage").expect("write");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    let spec = guest.spec(&["bad"], json!({}));
    let (code, stdout, stderr) = guest.run("a", &spec).await;
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (1, "", "exec /bin/bad: exec format error\n")
    );
}

#[tokio::test]
async fn a_system_call_filter_works_with_and_without_new_privileges() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    for (id, no_new_privileges, uid) in [("a", true, 1000), ("b", false, 1000), ("c", false, 0)] {
        let patch = json!({
            "process": {"noNewPrivileges": no_new_privileges, "user": {"uid": uid, "gid": uid}},
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}}
        });
        let script =
            "mkdir /tmp/x 2>&1; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr '\\t' ' '";
        assert_eq!(
            output(&guest, id, script, patch).await,
            format!(
                "mkdir: can't create directory '/tmp/x': Operation not supported\nNoNewPrivs: {}\nSeccomp: 2\n",
                u8::from(no_new_privileges)
            )
        );
    }
}
