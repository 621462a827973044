//! The whole process, jailed, with kernels of a few instructions. Needs root and /dev/kvm; without them
//! there is nothing to see, and the tests say so.

mod rig;

use std::{
    fs::{self, File},
    io::Write,
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    path::Path,
    process::{Command, Stdio},
};

use isopod_config::MonitorConfig;
use serde_json::{Value, json};

use rig::{FOREVER, RESET, STRANGE, UID, Wanted, ask, code::MODE, print, start, start_with};

#[test]
fn a_guest_boots_speaks_and_resets() {
    let code = [print("hello\n"), RESET.to_vec()].concat();
    let Some(mut monitor) = start(&code, 2) else {
        return;
    };
    let boot = ask!(monitor, boot).unwrap();
    assert!(boot.since_start_us > 0 && boot.cpu_us > 0);
    assert_eq!(monitor.line(), "hello\n");
    assert_eq!(monitor.ends().code(), Some(0), "{}", monitor.errors());
}

#[test]
fn a_kernel_is_entered_as_its_protocol_says() {
    for (pvh, said) in [(true, "p\n"), (false, "-q\n")] {
        let wanted = Wanted {
            code: &MODE,
            cpus: 1,
            memory_mib: 64,
            pvh,
            ..Wanted::default()
        };
        let Some(mut monitor) = start_with(wanted) else {
            return;
        };
        ask!(monitor, boot).unwrap();
        assert_eq!(monitor.line(), said);
        assert_eq!(monitor.ends().code(), Some(0), "{}", monitor.errors());
    }
}

#[test]
fn nothing_runs_before_it_is_asked_for_and_nothing_boots_twice() {
    let code = [print("up\n"), FOREVER.to_vec()].concat();
    let Some(mut monitor) = start(&code, 1) else {
        return;
    };
    assert!(ask!(monitor, pause).is_err(), "it has not booted");
    assert_eq!(ask!(monitor, metrics).unwrap().vcpus[0].ports, 0);
    ask!(monitor, boot).unwrap();
    assert!(ask!(monitor, boot).is_err());
    assert_eq!(monitor.line(), "up\n");

    for _ in 0..5 {
        ask!(monitor, pause).unwrap();
        let metrics = ask!(monitor, metrics).unwrap();
        assert_eq!(metrics.vcpus[0].ports, 3);
        let names: Vec<_> = metrics.devices.iter().map(|d| d.name.clone()).collect();
        assert_eq!(names, ["pmem-root", "rng"]);
        ask!(monitor, resume).unwrap();
    }
    ask!(monitor, shut_down).unwrap();
    assert_eq!(monitor.ends().code(), Some(0));
}

#[test]
fn it_ends_with_its_owner() {
    let Some(mut monitor) = start(&FOREVER, 1) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    monitor.lifeline = None;
    assert_eq!(monitor.ends().code(), Some(0));
}

#[test]
fn a_guest_that_cannot_go_on_is_told() {
    let Some(mut monitor) = start(&STRANGE, 1) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    let status = monitor.ends();
    assert_eq!(status.signal(), None, "no filter was broken");
    let told = monitor.errors();
    match status.code() {
        // Hardware: the triple fault.
        Some(0) => {}
        Some(1) => assert!(told.contains("Pshufb"), "{told}"),
        other => panic!("{other:?}: {told}"),
    }
}

#[test]
fn the_walls_stand_before_the_guest_runs() {
    let code = [print("up\n"), FOREVER.to_vec()].concat();
    let Some(mut monitor) = start(&code, 2) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    monitor.line();
    let status = monitor.proc("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let id = UID.to_string();
    assert_eq!(field("Uid:"), [&id, &id, &id, &id].map(String::clone));
    assert_eq!(field("Gid:"), [&id, &id, &id, &id].map(String::clone));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(
            of(&monitor.child.id().to_string()),
            of("self"),
            "{namespace}"
        );
    }
    // An empty root that cannot be written.
    let root = format!("/proc/{}/root", monitor.child.id());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    assert!(File::create(Path::new(&root).join("file")).is_err());
    let limits = monitor.proc("limits");
    assert!(
        limits
            .lines()
            .any(|l| l.starts_with("Max core file size        0"))
    );

    // Every thread has a filter of its own on top.
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", monitor.child.id())).unwrap() {
        let path = thread.unwrap().path();
        let status = fs::read_to_string(path.join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        names.push(
            fs::read_to_string(path.join("comm"))
                .unwrap()
                .trim()
                .to_owned(),
        );
    }
    // KVM's own, in the kernel: it recovers large pages.
    names.retain(|name| !name.starts_with("kvm-"));
    names.sort();
    assert_eq!(
        names,
        [
            "isopod-vmm",
            "lifeline",
            "pmem-root",
            "rng",
            "vcpu-0",
            "vcpu-1"
        ]
    );

    // What it was given and nothing of the caller's.
    let open = fs::read_dir(format!("/proc/{}/fd", monitor.child.id())).unwrap();
    let targets: Vec<_> = open
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|path| path.display().to_string())
        .collect();
    let paths: Vec<_> = targets
        .iter()
        .filter(|t| t.starts_with('/') && !t.contains("memfd:"))
        .filter(|t| *t != "/dev/kvm" && !t.contains("(deleted)") && *t != "/dev/null")
        .collect();
    assert!(paths.is_empty(), "{paths:?}");
    assert!(monitor.console.as_raw_fd() > 2);
}

/// What a monitor answers to a configuration, without a descriptor of those it names.
fn configured(json: &[u8]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_isopod-vmm"))
        .env_clear()
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have seen enough before all is written.
    let _ = child.stdin.take().unwrap().write_all(json);
    let ended = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    (ended.status.code(), told)
}

#[test]
fn a_configuration_that_is_none_is_refused() {
    let deep = "[".repeat(60_000);
    let long = format!("{{\"name\": \"{}\"", "x".repeat(100_000));
    for text in [
        "",
        "{}",
        "null",
        "7",
        "{\"name\": 3}",
        "\0\0\0",
        "{\"a",
        &deep,
        &long,
    ] {
        let (code, told) = configured(text.as_bytes());
        let shown = text.get(..10).unwrap_or(text);
        assert_eq!(code, Some(1), "{shown}: {told}");
        assert!(
            told.contains("understand the configuration"),
            "{shown}: {told}"
        );
    }
}

#[test]
fn a_configuration_of_any_values_ends_in_an_error() {
    let bare = MonitorConfig::bare("test", 64, UID);
    let bare = serde_json::to_value(bare).unwrap();
    let mut paths = Vec::new();
    fields(&bare, String::new(), &mut paths);
    assert!(paths.len() > 15, "{paths:?}");
    for path in paths {
        for value in [
            json!(-1),
            json!(0),
            json!(1),
            json!(u64::MAX),
            json!("/etc/passwd"),
            json!([3, 3]),
        ] {
            let mut config = bare.clone();
            *config.pointer_mut(&path).unwrap() = value.clone();
            let json = serde_json::to_vec(&config).unwrap();
            let (code, told) = configured(&json);
            assert_eq!(code, Some(1), "{path} = {value}: {told}");
            assert!(!told.contains("panicked"), "{path} = {value}: {told}");
        }
    }
}

/// All that has a value, by JSON pointer.
fn fields(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (name, value) in map {
                fields(value, format!("{path}/{name}"), found);
            }
        }
        _ => found.push(path),
    }
}
