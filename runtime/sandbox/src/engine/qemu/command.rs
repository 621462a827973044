//! QEMU's command line, from the plan alone.

use std::{ffi::OsString, os::fd::RawFd};

use isopod_config::VmConfig;
use isopod_settings::{Accelerator, Paths};

use super::spare::SpareMemory;

/// Descriptors as QEMU and its launcher have them.
pub(super) const IMAGE_FD: RawFd = 3;
pub(super) const FS_FD: RawFd = 4;
pub(super) const VSOCK_FD: RawFd = 5;
pub(super) const QMP_FD: RawFd = 6;
pub(super) const CONSOLE_FD: RawFd = 7;
pub(super) const LIFELINE_FD: RawFd = 8;

/// Where QEMU finds the kernel, wherever the host keeps it.
const KERNEL: &str = "/vmlinux";

/// Whom QEMU runs as, and what executes guest code.
pub(super) struct Confinement {
    pub uid: u32,
    pub gid: u32,
    pub accelerator: Accelerator,
}

/// The launcher's arguments, which end in QEMU's.
pub(super) fn launcher(vm: &VmConfig, paths: &Paths, confinement: &Confinement) -> Vec<OsString> {
    let mut words = Words::default();
    words.push("--name", &vm.name);
    words.push("--uid", &confinement.uid.to_string());
    words.push("--gid", &confinement.gid.to_string());
    words.push("--lifeline", &LIFELINE_FD.to_string());
    for fd in [IMAGE_FD, FS_FD, VSOCK_FD, QMP_FD, CONSOLE_FD] {
        words.push("--keep-fd", &fd.to_string());
    }
    // Guest memory is the only file that QEMU makes.
    let memory = SpareMemory::of(vm).total_mib() << 20;
    words.push("--limit-fsize", &memory.to_string());
    words.0.push("--bind-ro-at".into());
    words.0.push(vm.kernel.path.clone().into());
    words.0.push(KERNEL.into());
    if !paths.qemu.starts_with("/usr") {
        words.0.push("--bind-ro".into());
        words.0.push(paths.qemu.clone().into());
    }
    if confinement.accelerator == Accelerator::Kvm {
        words.push("--bind-dev", "/dev/kvm");
    }
    words.0.push("--".into());
    words.0.push(paths.qemu.clone().into());
    words.0.extend(qemu(vm, confinement.accelerator));
    words.0
}

/// QEMU's arguments.
pub(super) fn qemu(vm: &VmConfig, accelerator: Accelerator) -> Vec<OsString> {
    let size = SpareMemory::of(vm).total_mib();
    let mut words = Words::default();
    words.push("-name", &format!("guest={}", escape(&vm.name)));
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        words.0.push(flag.into());
    }
    words.push("-display", "none");
    words.push(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    // No PCI, no ACPI: the guest kernel has drivers for neither. The RTC gives the first wall clock.
    words.push(
        "-machine",
        "microvm,acpi=off,pcie=off,usb=off,rtc=on,pic=on,pit=on,isa-serial=on,\
         x-option-roms=off,auto-kernel-cmdline=on,dump-guest-core=off,memory-backend=memory",
    );
    words.push("-global", "virtio-mmio.force-legacy=false");
    match accelerator {
        // One thread for all virtual CPUs: with one for each, a guest's kernel that patches its code now and
        // then executes the breakpoint that it has taken away again, and dies of it (seen with QEMU 7.2, in
        // about one of sixty pods with a CPU quota and two processors). The translation cache is bounded,
        // its default is 1 GiB.
        Accelerator::Tcg => {
            words.push("-accel", "tcg,thread=single,tb-size=128");
            words.push("-cpu", "max");
        }
        Accelerator::Kvm => {
            words.push("-accel", "kvm");
            words.push("-cpu", "host");
        }
    }
    // All of them: this machine cannot be given more. Those that the kernel does not bring up wait, halted.
    words.push("-smp", &format!("cpus={}", vm.cpus.max));
    words.push("-m", &format!("size={size}M"));
    let huge = if vm.memory.huge_pages {
        ",hugetlb=on,hugetlbsize=2M"
    } else {
        ""
    };
    words.push(
        "-object",
        &format!("memory-backend-memfd,id=memory,size={size}M,share=on{huge}"),
    );

    words.push("-add-fd", &format!("fd={IMAGE_FD},set=1"));
    words.push(
        "-blockdev",
        "driver=file,node-name=image,filename=/dev/fdset/1,read-only=on,locking=off,\
         auto-read-only=off",
    );
    // The guest reads ahead twice the best size of a request: the agent in a few requests, where each of the
    // fifty of 128 KiB that it takes by default wakes an idle thread here and an idle processor there.
    words.push(
        "-device",
        "virtio-blk-device,drive=image,serial=root,opt_io_size=1048576",
    );
    words.push("-object", "rng-builtin,id=entropy");
    words.push("-device", "virtio-rng-device,rng=entropy");
    words.push("-chardev", &format!("socket,id=fs,fd={FS_FD}"));
    words.push(
        "-device",
        &format!(
            "vhost-user-fs-device,chardev=fs,tag={},num-request-queues={},queue-size={}",
            escape(&vm.fs.tag),
            vm.fs.request_queues,
            vm.fs.queue_size,
        ),
    );
    words.push("-chardev", &format!("socket,id=vsock,fd={VSOCK_FD}"));
    words.push("-device", "vhost-user-vsock-device,chardev=vsock");

    words.push("-chardev", &format!("socket,id=console,fd={CONSOLE_FD}"));
    words.push("-serial", "chardev:console");
    words.push("-chardev", &format!("socket,id=qmp,fd={QMP_FD}"));
    words.push("-mon", "chardev=qmp,mode=control");

    words.push("-kernel", KERNEL);
    words.push("-append", &command_line(vm, accelerator));
    words.0
}

/// Where the root is, and the console that needs no probing.
const MACHINE_PARAMETERS: [&str; 5] = [
    "root=/dev/vda",
    "rootfstype=erofs",
    "ro",
    "reboot=t",
    "earlyprintk=serial,ttyS0,115200,keep",
];

/// What the guest kernel need not find out about a software CPU, or guard against on it: its clocks
/// are known and never stop, and nothing is executed speculatively. `guest-kernel` measures them.
const TCG_PARAMETERS: [&str; 6] = [
    "lapic_timer_hz=1000000000",
    "tsc=reliable",
    "no_timer_check",
    "mitigations=off",
    "rcupdate.rcu_expedited=1",
    "noreplace-smp",
];

/// What is added is used at once, and mostly in a way that lets it be taken away again.
const GROWING_PARAMETERS: [&str; 2] = [
    "memhp_default_state=online",
    "memory_hotplug.online_policy=auto-movable",
];

/// What the plan says, then what this machine needs: `quiet` must be known before there is a console.
fn command_line(vm: &VmConfig, accelerator: Accelerator) -> String {
    let mut words: Vec<&str> = vm.kernel.command_line.iter().map(String::as_str).collect();
    words.extend(MACHINE_PARAMETERS);
    if accelerator == Accelerator::Tcg {
        words.extend(TCG_PARAMETERS);
    }
    let online = format!("maxcpus={}", vm.cpus.boot);
    words.push(&online);
    let memory = SpareMemory::of(vm).parameter();
    if let Some(memory) = &memory {
        words.push(memory);
        words.extend(GROWING_PARAMETERS);
    }
    words.join(" ")
}

/// In QEMU's option lists a comma is written twice.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn push(&mut self, option: &str, value: &str) {
        self.0.push(option.into());
        self.0.push(value.into());
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
