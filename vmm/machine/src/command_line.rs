//! The kernel's command line: what the configuration says, then what this machine is.

use crate::layout;

/// Who runs the guest's supervisor mode on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The processor.
    Hardware,
    /// The host's instruction emulator: each instruction of the kernel counts.
    Emulated,
}

/// A command line that no kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// Longer than a kernel reads.
    #[error("the kernel's command line has {length} bytes; it may have {}", layout::COMMAND_LINE_SIZE - 1)]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Not what a kernel's parameters are made of.
    #[error("the kernel's command line has a byte that is neither printable ASCII nor a space")]
    Byte,
}

/// The console is a port that is polled,
const EARLY_ONLY: &str = "earlyprintk=serial,ttyS0,115200";
/// to the end, unless there is another.
const EARLY_AND_LATE: &str = "earlyprintk=serial,ttyS0,115200,keep";
const LATE: &str = "console=hvc0";

/// No ACPI: a reset is a triple fault. The rest is known already.
const ALWAYS: &[&str] = &[
    "reboot=t",
    "panic=-1",
    // All processors read the host's time stamp counter; nothing could watch over it.
    "tsc=reliable",
    // 50 ms of waiting for an interrupt whose wiring KVM's is.
    "no_timer_check",
    // Lock prefixes stay as they are, instead of being taken out for one processor and put back.
    "noreplace-smp",
];

/// See guest-kernel/README.md.
const EMULATED: &[&str] = &[
    // Patch 1: SYSCALL arrives as a page fault.
    "syscall_by_fault",
    // What the host's emulator lacks and the kernel can do without. (The last two: checksums.)
    "clearcpuid=smap,popcnt,cx16,fsgsbase,sse4_2,pclmulqdq",
    // The kernel's branches are not the processor's: nothing of it is executed speculatively.
    "mitigations=off",
    // It is slow where it seems to stand still, and the more so for telling of it.
    "rcupdate.rcu_cpu_stall_suppress=1",
    // Until PID 1 runs nobody is disturbed by expedited grace periods.
    "rcupdate.rcu_expedited=1",
];

/// Puts it together. `devices` are slots in use; `online` of the processors are brought up at boot.
pub(crate) fn compose(
    given: &str,
    host: Host,
    devices: usize,
    online: u32,
) -> Result<String, CommandLineError> {
    // What is given comes first: `quiet` keeps the early console short only if it comes before that
    // console, and where a parameter is named twice, what the machine is counts.
    let mut words = vec![given.to_owned()];
    let late = given.split(' ').any(|word| word == LATE);
    words.push(if late { EARLY_ONLY } else { EARLY_AND_LATE }.to_owned());
    words.extend(ALWAYS.iter().map(|word| (*word).to_owned()));
    if host == Host::Emulated {
        words.extend(EMULATED.iter().map(|word| (*word).to_owned()));
    }
    words.push(format!("maxcpus={online}"));
    for (window, line) in (0..devices).filter_map(layout::slot) {
        let kib = layout::WINDOW / 1024;
        words.push(format!("virtio_mmio.device={kib}K@{window:#x}:{line}"));
    }
    let line = words.join(" ");
    if line.len() >= layout::COMMAND_LINE_SIZE {
        return Err(CommandLineError::TooLong { length: line.len() });
    }
    if !line.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(CommandLineError::Byte);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_with_window_and_line() {
        let line = compose("root=/dev/pmem0", Host::Hardware, 2, 1).unwrap();
        assert!(line.starts_with("root=/dev/pmem0 earlyprintk=serial,ttyS0,115200,keep reboot=t "));
        assert!(line.ends_with(
            "maxcpus=1 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
        ));
        assert!(!line.contains("syscall_by_fault"));
    }

    #[test]
    fn the_serial_port_is_silent_once_there_is_a_console() {
        let line = compose("quiet console=hvc0", Host::Hardware, 2, 1).unwrap();
        assert!(line.contains(" earlyprintk=serial,ttyS0,115200 "), "{line}");
    }

    #[test]
    fn an_emulated_host_is_told_of() {
        let line = compose("", Host::Emulated, 0, 2).unwrap();
        assert!(line.contains(" syscall_by_fault ") && line.ends_with(" maxcpus=2"));
        assert!(
            !line.contains("noxsave"),
            "user mode's registers must be saved"
        );
    }

    #[test]
    fn what_no_kernel_takes_is_refused() {
        let long = compose(&"x".repeat(2048), Host::Hardware, 18, 1);
        assert!(matches!(long, Err(CommandLineError::TooLong { .. })));
        let newline = compose("a\nb", Host::Hardware, 0, 1);
        assert_eq!(newline, Err(CommandLineError::Byte));
        // All slots and a word of each kind fit.
        compose(&"x".repeat(400), Host::Emulated, layout::LINES.len(), 64).unwrap();
    }
}
