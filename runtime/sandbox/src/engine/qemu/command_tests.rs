use isopod_config::{CpuConfig, FsConfig, KernelConfig, MemoryConfig, VsockConfig};

use super::*;

fn vm() -> VmConfig {
    VmConfig {
        name: "pod,1".into(),
        cpus: CpuConfig { boot: 2, max: 2 },
        memory: MemoryConfig {
            size_mib: 514,
            huge_pages: false,
        },
        spare_memory_mib: 0,
        kernel: KernelConfig {
            path: "/k/vmlinux".into(),
            command_line: vec!["init=/sbin/x".into(), "quiet".into()],
        },
        image: "/i/guest.erofs".into(),
        fs: FsConfig {
            tag: "shared".into(),
            request_queues: 2,
            queue_size: 256,
        },
        vsock: VsockConfig { guest_cid: 3 },
    }
}

fn text(words: &[OsString]) -> Vec<String> {
    words
        .iter()
        .map(|word| word.to_str().unwrap().to_owned())
        .collect()
}

fn value(words: &[String], option: &str) -> String {
    let place = words.iter().position(|word| word == option);
    words[place.unwrap_or_else(|| panic!("no {option}")) + 1].clone()
}

#[test]
fn qemu_is_told_only_what_the_plan_says() {
    let words = text(&qemu(&vm(), Accelerator::Tcg));
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        assert!(words.iter().any(|word| word == flag), "{flag}");
    }
    assert!(value(&words, "-sandbox").starts_with("on,obsolete=deny,"));
    assert!(value(&words, "-machine").starts_with("microvm,acpi=off,"));
    assert_eq!(value(&words, "-name"), "guest=pod,,1");
    assert_eq!(value(&words, "-smp"), "cpus=2");
    assert_eq!(value(&words, "-m"), "size=514M");
    assert!(value(&words, "-accel").starts_with("tcg,"));
    assert_eq!(value(&words, "-kernel"), "/vmlinux");
    let line = value(&words, "-append");
    assert!(
        line.starts_with("init=/sbin/x quiet root=/dev/vda rootfstype=erofs ro reboot=t "),
        "{line}"
    );
    let all = words.join(" ");
    assert!(all.contains("memory-backend-memfd,id=memory,size=514M,share=on "));
    assert!(all.contains("tag=shared,num-request-queues=2,queue-size=256"));
    // The image is open already: its path is none of QEMU's business.
    assert!(!all.contains("guest.erofs"));
    // Nothing of a network, a display or a disk that can be written.
    assert!(!all.contains("net") && all.matches("-drive").count() == 0);
    assert!(all.contains("read-only=on"));
}

/// The list that the guest kernel is built for and measured with.
#[test]
fn the_guest_kernel_gets_the_parameters_that_it_is_measured_with() {
    let list = include_str!("../../../../../guest-kernel/cmdline.qemu");
    let mut vm = vm();
    vm.kernel.command_line = vec!["quiet".into(), "panic=-1".into()];
    let line = command_line(&vm, Accelerator::Tcg);
    for parameter in list
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        assert!(line.split(' ').any(|word| word == parameter), "{parameter}");
    }
    // A real CPU speculates.
    assert!(!command_line(&vm, Accelerator::Kvm).contains("mitigations"));
}

#[test]
fn what_the_guest_can_grow_by_is_there_and_not_in_use() {
    let mut vm = vm();
    vm.cpus.max = 5;
    vm.spare_memory_mib = 1024;
    let words = text(&qemu(&vm, Accelerator::Tcg));
    assert_eq!(value(&words, "-smp"), "cpus=5");
    assert_eq!(value(&words, "-m"), "size=1664M");
    let line = value(&words, "-append");
    assert!(line.contains(" maxcpus=2 mem=514M "), "{line}");
    assert!(line.contains(" memory_hotplug.online_policy=auto-movable"));
    let all = words.join(" ");
    assert!(all.contains("memory-backend-memfd,id=memory,size=1664M,share=on "));
    let confinement = Confinement {
        uid: 7,
        gid: 8,
        accelerator: Accelerator::Tcg,
    };
    let words = text(&launcher(&vm, &Paths::default(), &confinement));
    assert_eq!(value(&words, "--limit-fsize"), (1664u64 << 20).to_string());
}

#[test]
fn kvm_and_huge_pages_are_passed_on() {
    let mut vm = vm();
    vm.memory.huge_pages = true;
    let words = text(&qemu(&vm, Accelerator::Kvm));
    assert_eq!(value(&words, "-accel"), "kvm");
    assert_eq!(value(&words, "-cpu"), "host");
    assert!(
        words
            .join(" ")
            .contains("share=on,hugetlb=on,hugetlbsize=2M")
    );
}

#[test]
fn the_launcher_gives_descriptors_and_the_kernel_and_no_more() {
    let confinement = Confinement {
        uid: 7,
        gid: 8,
        accelerator: Accelerator::Tcg,
    };
    let words = text(&launcher(&vm(), &Paths::default(), &confinement));
    let end = words.iter().position(|word| word == "--").unwrap();
    assert_eq!(words[end + 1], "/usr/bin/qemu-system-x86_64");
    let words = &words[..end];
    assert_eq!(value(words, "--uid"), "7");
    assert_eq!(value(words, "--gid"), "8");
    assert!(words.join(" ").contains("--bind-ro-at /k/vmlinux /vmlinux"));
    assert_eq!(value(words, "--limit-fsize"), (514u64 << 20).to_string());
    assert_eq!(words.iter().filter(|word| *word == "--keep-fd").count(), 5);
    assert!(!words.contains(&"--bind-dev".to_owned()));
}

#[test]
fn a_qemu_outside_of_usr_is_brought_into_the_jail() {
    let paths = Paths {
        qemu: "/opt/qemu/bin/qemu".into(),
        ..Paths::default()
    };
    let confinement = Confinement {
        uid: 7,
        gid: 8,
        accelerator: Accelerator::Kvm,
    };
    let words = text(&launcher(&vm(), &paths, &confinement)).join(" ");
    assert!(words.contains("--bind-ro /opt/qemu/bin/qemu "), "{words}");
    assert!(words.contains("--bind-dev /dev/kvm "), "{words}");
}
