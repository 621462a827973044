use isopod_hypervisor::Hypervisor;
use isopod_sandbox::preflight::EngineReport;

use super::*;

/// A machine on which everything is right.
fn good() -> Machine {
    let program = |path: &str, version: &str| Program {
        path: path.into(),
        version: Ok(version.to_owned()),
    };
    Machine {
        settings: Ok(Settings::default()),
        settings_file: Some("/etc/isopod/isopod.toml".into()),
        architecture: "x86_64".into(),
        kernel_release: "6.1.0-18-amd64".into(),
        missing_capabilities: Vec::new(),
        hypervisor: Ok(Hypervisor {
            supervisor: Supervisor::Hardware,
            instructions_per_second: 3.6e9,
        }),
        engine: Ok(EngineReport {
            name: "qemu",
            why: "a test".into(),
        }),
        qemu: program("/usr/bin/qemu-system-x86_64", "QEMU emulator version 7.2.9"),
        qemu_firmware: Some("/usr/share/seabios/bios-microvm.bin".into()),
        kernel: Ok(()),
        image: Ok(()),
        file_server: program("/l/isopod-fs", "isopod-fs 0.1.0"),
        monitor: program("/l/isopod-vmm", "isopod-vmm 0.1.0"),
        jail: program("/l/isopod-jail", "isopod-jail 0.1.0"),
        containerd: program("/usr/bin/containerd", "containerd github.com/c/c 1.6.20 x"),
        shim: program("/b/containerd-shim-isopod-v2", env!("CARGO_PKG_VERSION")),
        cgroups: Cgroups::V2,
        missing_namespaces: Vec::new(),
        seccomp: true,
        landlock_abi: 7,
        overlayfs: true,
        available_mib: 24000,
        huge_pages: 0,
    }
}

fn with(change: impl FnOnce(&mut Machine)) -> Report {
    let mut machine = good();
    change(&mut machine);
    judge(&machine)
}

fn settings_with(change: impl FnOnce(&mut Settings)) -> Result<Settings, String> {
    let mut settings = Settings::default();
    change(&mut settings);
    Ok(settings)
}

fn find<'a>(report: &'a Report, name: &str) -> &'a Check {
    let check = report.checks.iter().find(|check| check.name == name);
    check.unwrap_or_else(|| panic!("no check {name}"))
}

#[test]
fn a_good_machine() {
    let report = judge(&good());
    assert!(report.can_run_pods);
    for check in &report.checks {
        // The software CPU's warning is the only one.
        let expected = if check.name == "isolation" {
            Status::Warn
        } else {
            Status::Ok
        };
        assert_eq!(check.status, expected, "{check:?}");
    }
}

type Case = (&'static str, Status, fn(&mut Machine), &'static str);

#[test]
fn every_fault_is_seen_named_and_answered() {
    let cases: &[Case] = &[
        (
            "settings",
            Status::Fail,
            |m| m.settings = Err("line 3".into()),
            "line 3",
        ),
        (
            "privileges",
            Status::Fail,
            |m| m.missing_capabilities = vec!["CAP_SYS_ADMIN"],
            "CAP_SYS_ADMIN",
        ),
        (
            "host kernel",
            Status::Fail,
            |m| m.kernel_release = "5.10.0".into(),
            "5.10.0",
        ),
        (
            "host kernel",
            Status::Fail,
            |m| m.architecture = "aarch64".into(),
            "aarch64",
        ),
        (
            "kvm",
            Status::Warn,
            |m| m.hypervisor = Err("/dev/kvm: absent".into()),
            "/dev/kvm",
        ),
        (
            "engine",
            Status::Fail,
            |m| m.engine = Err("no kvm engine".into()),
            "no kvm engine",
        ),
        (
            "qemu",
            Status::Fail,
            |m| m.qemu.version = Err("No such file".into()),
            "/usr/bin/qemu-system-x86_64",
        ),
        (
            "qemu",
            Status::Fail,
            |m| m.qemu.version = Ok("QEMU emulator version 6.0.0".into()),
            "6.0.0",
        ),
        (
            "qemu firmware",
            Status::Fail,
            |m| m.qemu_firmware = None,
            "bios-microvm.bin",
        ),
        (
            "guest kernel",
            Status::Fail,
            |m| m.kernel = Err("truncated".into()),
            "truncated",
        ),
        (
            "guest image",
            Status::Fail,
            |m| m.image = Err("not EROFS".into()),
            "not EROFS",
        ),
        (
            "isopod-fs",
            Status::Fail,
            |m| m.file_server.version = Err("gone".into()),
            "/l/isopod-fs",
        ),
        (
            "isopod-jail",
            Status::Fail,
            |m| m.jail.version = Err("gone".into()),
            "/l/isopod-jail",
        ),
        (
            "containerd",
            Status::Fail,
            |m| m.containerd.version = Err("gone".into()),
            "gone",
        ),
        (
            "containerd",
            Status::Fail,
            |m| m.containerd.version = Ok("containerd 1.4.3".into()),
            "1.4.3",
        ),
        (
            "containerd-shim-isopod-v2",
            Status::Fail,
            |m| m.shim.version = Err("not in PATH".into()),
            "not in PATH",
        ),
        (
            "containerd-shim-isopod-v2",
            Status::Warn,
            |m| m.shim.version = Ok("shim 0.0.1".into()),
            "0.0.1",
        ),
        (
            "cgroups",
            Status::Warn,
            |m| m.cgroups = Cgroups::None,
            "/sys/fs/cgroup",
        ),
        (
            "namespaces",
            Status::Fail,
            |m| m.missing_namespaces = vec!["pid", "uts"],
            "pid, uts",
        ),
        ("seccomp", Status::Fail, |m| m.seccomp = false, "seccomp"),
        (
            "landlock",
            Status::Warn,
            |m| m.landlock_abi = 0,
            "not available",
        ),
        (
            "overlayfs",
            Status::Warn,
            |m| m.overlayfs = false,
            "not available",
        ),
        ("memory", Status::Warn, |m| m.available_mib = 100, "100 MiB"),
        (
            "huge pages",
            Status::Fail,
            |m| m.settings = settings_with(|s| s.vm.huge_pages = true),
            "0 free",
        ),
    ];
    for (name, status, change, part) in cases {
        let report = with(change);
        let check = find(&report, name);
        assert_eq!(check.status, *status, "{check:?}");
        assert!(check.found.contains(part), "{check:?}");
        assert!(!check.remedy.is_empty(), "{check:?}");
        assert_eq!(report.can_run_pods, *status != Status::Fail, "{name}");
    }
}

#[test]
fn emulated_supervisor_mode_is_told_and_matters_by_engine() {
    let emulated = Ok(Hypervisor {
        supervisor: Supervisor::Emulated,
        instructions_per_second: 1.75e6,
    });
    let report = with(|m| m.hypervisor = emulated.clone());
    let check = find(&report, "kvm");
    assert_eq!(check.status, Status::Warn);
    assert!(check.found.contains("emulated (1.8 M"), "{check:?}");
    assert!(check.remedy.contains("nothing to do"), "{check:?}");
    let report = with(|m| {
        m.hypervisor = emulated;
        m.settings = settings_with(|s| s.qemu.accelerator = Accelerator::Kvm);
    });
    assert!(find(&report, "kvm").remedy.contains("tcg"));
}

#[test]
fn missing_kvm_fails_those_who_use_it() {
    let report = with(|m| {
        m.hypervisor = Err("/dev/kvm: absent".into());
        m.settings = settings_with(|s| s.qemu.accelerator = Accelerator::Kvm);
    });
    assert_eq!(find(&report, "kvm").status, Status::Fail);
    assert!(report.checks.iter().all(|check| check.name != "isolation"));
}

#[test]
fn the_engine_is_explained() {
    let engine = judge(&good()).engine.expect("one");
    assert_eq!((engine.name, engine.cpu), ("qemu", "software"));
    assert_eq!(engine.why, "a test");
    assert_eq!(with(|m| m.engine = Err("none".into())).engine, None);
}

#[test]
fn without_qemu_as_engine_its_absence_is_no_fault() {
    let report = with(|m| {
        m.engine = Ok(EngineReport {
            name: "kvm",
            why: "a test".into(),
        });
        m.qemu.version = Err("gone".into());
        m.qemu_firmware = None;
    });
    assert!(report.can_run_pods);
}

#[test]
fn json_has_the_documented_fields() {
    let json = serde_json::to_value(judge(&good())).expect("encodes");
    assert_eq!(json["can_run_pods"], true);
    assert_eq!(json["engine"]["name"], "qemu");
    let first = &json["checks"][0];
    assert_eq!(first["name"], "settings");
    assert_eq!(first["status"], "ok");
    assert_eq!(first["remedy"], "");
    assert!(first["found"].is_string());
}

#[test]
fn versions() {
    for (text, expected) in [
        ("6.1.0-18-amd64", Some((6, 1))),
        ("QEMU emulator version 7.2.9 (Debian 1:7.2)", Some((7, 2))),
        (
            "containerd github.com/containerd/containerd 1.6.20~ds1 x",
            Some((1, 6)),
        ),
        ("containerd containerd.io v2.0.1", Some((2, 0))),
        ("none", None),
        ("", None),
    ] {
        assert_eq!(version(text), expected, "{text}");
    }
}
