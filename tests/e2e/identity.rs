//! Who a process is and what it may do: environment, user, directory, capabilities, limits, names.

use anyhow::Result;
use isopod_tests::{
    Bed, Case, check_contains, check_eq,
    image::ImageConfig,
    spec::{privilege, spec},
};
use serde_json::{Value, json};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("environment", environment),
    Case::both("user_of_an_image", image_user),
    Case::both("user_by_number_with_groups", numbers),
    Case::both("user_of_an_exec", exec_user),
    Case::both("bad_user", bad_user),
    Case::both("working_directory", cwd),
    Case::both("bad_working_directory", bad_cwd),
    Case::both("working_directory_that_is_a_file", file_cwd),
    Case::both("capabilities_default", capabilities),
    Case::both("capabilities_dropped", dropped),
    Case::both("privileged_has_all_capabilities", privileged),
    Case::both("capabilities_of_an_unprivileged_user", user_capabilities),
    Case::both("rlimits", rlimits),
    Case::both("no_new_privileges", no_new_privileges),
    Case::both("new_privileges_when_allowed", new_privileges),
    Case::both("hostname", hostname),
    Case::both("init_is_process_one", process_one),
    Case::both("umask", umask),
];

fn by_hand(bed: &Bed, script: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
    let cgroup = format!("/{}/by-hand", bed.namespace);
    let mut spec = spec(&bed.rootfs()?, &cgroup, &["sh", "-c", script]);
    change(&mut spec);
    Ok(bed.container().spec(&spec)?.run([])?.ok()?.out())
}

fn environment(bed: &Bed) -> Result<()> {
    let image = bed.image(ImageConfig {
        env: vec!["FROM_IMAGE=yes".into()],
        ..Default::default()
    })?;
    let run = bed
        .container()
        .image(&image)
        .env("GREETING=hello world")
        .env("EMPTY=")
        .run(["env"])?
        .ok()?;
    let out = run.out();
    for wanted in [
        "PATH=/bin",
        "FROM_IMAGE=yes",
        "GREETING=hello world",
        "EMPTY=",
    ] {
        anyhow::ensure!(
            out.lines().any(|line| line == wanted),
            "{wanted:?} is not in:\n{out}"
        );
    }
    Ok(())
}

fn image_user(bed: &Bed) -> Result<()> {
    let image = bed.image(ImageConfig {
        user: "user".into(),
        ..Default::default()
    })?;
    let script = "id -u; id -g; grep Groups: /proc/self/status";
    let out = bed
        .container()
        .image(&image)
        .run(["sh", "-c", script])?
        .ok()?
        .out();
    let (numbers, groups) = out.split_once("Groups:").unwrap_or_default();
    check_eq!(numbers, "1000\n1000\n");
    let mut groups: Vec<u32> = groups
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    groups.sort_unstable();
    check_eq!(groups, [29, 44, 1000]);
    Ok(())
}

fn numbers(bed: &Bed) -> Result<()> {
    let out = by_hand(bed, "id -u; id -g; grep Groups /proc/self/status", |spec| {
        spec["process"]["user"] =
            json!({ "uid": 4321, "gid": 1234, "additionalGids": [29, 70000] });
    })?;
    check_eq!(
        out.split_whitespace().collect::<Vec<_>>(),
        ["4321", "1234", "Groups:", "29", "70000"]
    );
    Ok(())
}

fn exec_user(bed: &Bed) -> Result<()> {
    let container = bed.container().sleeping()?;
    let run = container
        .exec_with(&["--user", "1000:29"], ["sh", "-c", "id -u; id -g"])?
        .ok()?;
    check_eq!(run.out(), "1000\n29\n");
    check_eq!(container.output(["id", "-u"])?, "0");
    container.end()
}

fn bad_user(bed: &Bed) -> Result<()> {
    let image = bed.image(ImageConfig {
        user: "nobody-knows".into(),
        ..Default::default()
    })?;
    let run = bed.container().image(&image).run(["true"])?.code_is(1)?;
    check_contains!(run.err(), "no users found");
    Ok(())
}

fn cwd(bed: &Bed) -> Result<()> {
    let image = bed.image(ImageConfig {
        cwd: "/home/user".into(),
        ..Default::default()
    })?;
    check_eq!(
        bed.container().image(&image).run(["pwd"])?.ok()?.out(),
        "/home/user\n"
    );
    check_eq!(
        bed.container()
            .flags(["--cwd", "/tmp"])
            .run(["pwd"])?
            .ok()?
            .out(),
        "/tmp\n"
    );
    let container = bed.container().sleeping()?;
    check_eq!(
        container
            .exec_with(&["--cwd", "/etc"], ["pwd"])?
            .ok()?
            .out(),
        "/etc\n"
    );
    container.end()
}

fn bad_cwd(bed: &Bed) -> Result<()> {
    // runc makes a missing working directory of init, and refuses that of an exec.
    let run = bed
        .container()
        .flags(["--cwd", "/made/on/demand"])
        .run(["pwd"])?
        .ok()?;
    check_eq!(run.out(), "/made/on/demand\n");
    let container = bed.container().sleeping()?;
    let run = container
        .exec_with(&["--cwd", "/not/there"], ["pwd"])?
        .code_is(1)?;
    check_contains!(run.err().to_lowercase(), "no such file or directory");
    container.end()
}

fn file_cwd(bed: &Bed) -> Result<()> {
    let run = bed
        .container()
        .flags(["--cwd", "/etc/passwd"])
        .run(["pwd"])?
        .code_is(1)?;
    check_contains!(run.err(), "not a directory");
    Ok(())
}

fn status_line(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim().to_owned()
}

fn capabilities(bed: &Bed) -> Result<()> {
    let status = bed
        .container()
        .run(["cat", "/proc/self/status"])?
        .ok()?
        .out();
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        check_eq!(status_line(&status, set), "00000000a80425fb", "{set}");
    }
    check_eq!(status_line(&status, "CapAmb:"), "0000000000000000");
    Ok(())
}

fn dropped(bed: &Bed) -> Result<()> {
    let flags = ["--cap-drop", "CAP_CHOWN", "--cap-add", "CAP_SYS_TIME"];
    let run = bed.container().flags(flags).run([
        "sh",
        "-c",
        "cat /proc/self/status; chown 1 /etc/passwd",
    ])?;
    let run = run.code_is(1)?;
    check_eq!(status_line(&run.out(), "CapEff:"), "00000000aa0425fa");
    check_contains!(run.err(), "Operation not permitted");
    Ok(())
}

fn privileged(bed: &Bed) -> Result<()> {
    let held = std::fs::read_to_string("/proc/self/status")?;
    let host = u64::from_str_radix(&status_line(&held, "CapBnd:"), 16)?;
    let script = "cat /proc/self/status; echo 1 > /proc/sys/kernel/ctrl-alt-del && echo may-write";
    let out = by_hand(bed, script, |spec| privilege(spec, host))?;
    let held = u64::from_str_radix(&status_line(&out, "CapEff:"), 16)?;
    check_eq!(format!("{held:x}"), format!("{host:x}"));
    check_contains!(out, "may-write");
    Ok(())
}

fn user_capabilities(bed: &Bed) -> Result<()> {
    let image = bed.image(ImageConfig {
        user: "1000".into(),
        ..Default::default()
    })?;
    let status = bed
        .container()
        .image(&image)
        .run(["cat", "/proc/self/status"])?
        .ok()?
        .out();
    check_eq!(status_line(&status, "CapEff:"), "0000000000000000");
    check_eq!(status_line(&status, "CapBnd:"), "00000000a80425fb");
    Ok(())
}

fn rlimits(bed: &Bed) -> Result<()> {
    let out = by_hand(bed, "ulimit -Sn; ulimit -Hn; ulimit -Sc", |spec| {
        spec["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 123, "hard": 456 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
        ]);
    })?;
    check_eq!(
        out.split_whitespace().collect::<Vec<_>>(),
        ["123", "456", "0"]
    );
    Ok(())
}

fn no_new_privileges(bed: &Bed) -> Result<()> {
    let status = bed
        .container()
        .run(["cat", "/proc/self/status"])?
        .ok()?
        .out();
    check_eq!(status_line(&status, "NoNewPrivs:"), "1");
    Ok(())
}

fn new_privileges(bed: &Bed) -> Result<()> {
    let run = bed
        .container()
        .flags(["--allow-new-privs"])
        .run(["cat", "/proc/self/status"])?
        .ok()?;
    check_eq!(status_line(&run.out(), "NoNewPrivs:"), "0");
    Ok(())
}

fn hostname(bed: &Bed) -> Result<()> {
    check_eq!(
        by_hand(bed, "hostname", |spec| spec["hostname"] = json!("pod-one"))?,
        "pod-one\n"
    );
    Ok(())
}

fn process_one(bed: &Bed) -> Result<()> {
    // The shell expands the pattern while it is alone.
    let script = "echo $$; set -- /proc/[0-9]*; echo $#";
    let run = bed.container().run(["sh", "-c", script])?.ok()?;
    check_eq!(run.out(), "1\n1\n", "its number, and all it sees");
    Ok(())
}

fn umask(bed: &Bed) -> Result<()> {
    check_eq!(
        bed.container().run(["sh", "-c", "umask"])?.ok()?.out(),
        "0022\n"
    );
    let out = by_hand(bed, "umask", |spec| {
        spec["process"]["user"]["umask"] = json!(0o27)
    })?;
    check_eq!(out, "0027\n");
    Ok(())
}
