use rstest::rstest;

use super::*;
use crate::{Accelerator, Annotation, EngineChoice};

const SHIPPED: &str = include_str!("../isopod.toml");

fn parse(text: &str) -> Result<Settings, String> {
    Settings::parse(text, Path::new("isopod.toml")).map_err(|error| error.to_string())
}

/// The shipped file with every commented key made live.
fn uncommented() -> String {
    let is_key = |line: &str| {
        let name: String = line
            .chars()
            .take_while(|c| c.is_ascii_lowercase() || *c == '_')
            .collect();
        key::KEYS.iter().any(|(_, key)| *key == name) && line[name.len()..].starts_with(" = ")
    };
    let live = SHIPPED.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if is_key(rest) => rest,
        _ => line,
    });
    live.collect::<Vec<_>>().join("\n")
}

#[test]
fn shipped_file_is_the_defaults_as_shipped_and_uncommented() {
    assert_eq!(parse(SHIPPED), Ok(Settings::default()));
    assert_eq!(parse(&uncommented()), Ok(Settings::default()));
    assert_eq!(parse(""), Ok(Settings::default()));
}

#[test]
fn shipped_file_has_every_key_once() {
    let text = uncommented();
    let tree: toml::Table = text.parse().unwrap();
    for (table, name) in key::KEYS {
        let found = if table.is_empty() {
            tree.get(*name)
        } else {
            tree[*table].get(name)
        };
        assert!(
            found.is_some(),
            "{} is missing from isopod.toml",
            key::full(table, name)
        );
    }
}

#[test]
fn every_key_is_read() {
    let settings = parse(
        "engine = 'qemu'\nlog_level = 'debug'\n[vm]\nmemory_mib = 300\nhuge_pages = true\n\
         [qemu]\naccelerator = 'kvm'\n[annotations]\nallowed = ['io.isopod.cpus']\n\
         [debug]\nconsole = true\n",
    )
    .unwrap();
    assert_eq!(settings.engine, EngineChoice::Qemu);
    assert_eq!(settings.log_level.as_str(), "debug");
    assert_eq!(settings.vm.memory_mib, 300);
    assert!(settings.vm.huge_pages);
    assert_eq!(settings.qemu.accelerator, Accelerator::Kvm);
    assert_eq!(settings.annotations.allowed, [Annotation::Cpus]);
    assert!(settings.debug.console);
}

#[rstest]
#[case(
    "\nengin = 'qemu'",
    "isopod.toml:2: unknown key `engin`; did you mean `engine`?"
)]
#[case(
    "[vm]\nmemory_mb = 3",
    "isopod.toml:2: unknown key `vm.memory_mb`; did you mean `vm.memory_mib`?"
)]
#[case(
    "[path]\nkernel = '/k'",
    "isopod.toml:1: unknown key `path`; did you mean `paths`?"
)]
#[case(
    "kernel = '/k'",
    "isopod.toml:1: unknown key `kernel`; did you mean `paths.kernel`?"
)]
#[case(
    "[jail]\n\nquid = 3",
    "isopod.toml:3: unknown key `jail.quid`; did you mean `jail.uid`?"
)]
#[case(
    "[vm]\n[vm.cpu]\na = 3",
    "isopod.toml:2: unknown key `vm.cpu`; did you mean `vm.cpus`?"
)]
fn unknown_keys_name_the_nearest(#[case] text: &str, #[case] message: &str) {
    assert_eq!(parse(text), Err(message.to_owned()));
}

#[rstest]
#[case(
    "engine = 'xen'",
    "isopod.toml:1: unknown variant `xen`, expected one of `auto`, `kvm`, `qemu`"
)]
#[case(
    "[vm]\ncpus = 'two'",
    "isopod.toml:2: invalid type: string \"two\", expected u32"
)]
#[case(
    "[vm]\ncpus = -1",
    "isopod.toml:2: invalid value: integer `-1`, expected u32"
)]
#[case(
    "vm = 3",
    "isopod.toml:1: invalid type: integer `3`, expected struct Vm"
)]
#[case("[vm\n", "isopod.toml:1: unclosed table, expected `]`")]
#[case(
    "[annotations]\nallowed = ['a']",
    "isopod.toml:2: unknown variant `a`, expected `io.isopod.memory_mib` or `io.isopod.cpus`"
)]
fn wrong_types_name_the_line(#[case] text: &str, #[case] message: &str) {
    assert_eq!(parse(text), Err(message.to_owned()));
}

#[rstest]
#[case(
    "[vm]\nmemory_mib = 8",
    "isopod.toml:2: vm.memory_mib: 8 is not between 64 and 1048576"
)]
#[case(
    "[vm]\nmemory_mib = 600\nmax_memory_mib = 599",
    "isopod.toml:3: vm.max_memory_mib: 599 is not between 600 and 1048576"
)]
#[case("[vm]\ncpus = 0", "isopod.toml:2: vm.cpus: 0 is not between 1 and 64")]
#[case(
    "[vm]\nkernel_parameters = ['root=/dev/vdb']",
    "isopod.toml:2: vm.kernel_parameters: `root` is set by isopod"
)]
#[case(
    "[vm]\nkernel_parameters = ['a b']",
    "isopod.toml:2: vm.kernel_parameters: `a b` is not one parameter of printable ASCII without spaces and quotes"
)]
#[case(
    "[vm]\nkernel_parameters = ['--']",
    "isopod.toml:2: vm.kernel_parameters: `--` is not one parameter of printable ASCII without spaces and quotes"
)]
#[case(
    "[fs]\nqueue_size = 100",
    "isopod.toml:2: fs.queue_size: 100 is not a power of two"
)]
#[case(
    "[jail]\nuid = 0",
    "isopod.toml:2: jail.uid: 0 is not between 1 and 4294967294"
)]
#[case(
    "[paths]\nkernel = 'vmlinux'",
    "isopod.toml:2: paths.kernel: `vmlinux` is not an absolute path"
)]
#[case(
    "engine = 'kvm'\n[qemu]\naccelerator = 'kvm'",
    "isopod.toml:3: qemu.accelerator: engine = \"kvm\" does not run QEMU; set engine = \"qemu\""
)]
fn bounds_are_told(#[case] text: &str, #[case] message: &str) {
    assert_eq!(parse(text), Err(message.to_owned()));
}

#[test]
fn only_the_default_file_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("isopod.toml");
    assert_eq!(
        Settings::load_or_default(None, &file).unwrap(),
        Settings::default()
    );
    let missing = Settings::load_or_default(Some(&file), Path::new("/"))
        .unwrap_err()
        .to_string();
    assert!(missing.contains(&file.display().to_string()), "{missing}");
    fs::write(&file, "engine = 'kvm'").unwrap();
    assert_eq!(
        Settings::load_or_default(None, &file).unwrap().engine,
        EngineChoice::Kvm
    );
    assert_eq!(
        Settings::load(Some(&file)).unwrap().engine,
        EngineChoice::Kvm
    );
}
