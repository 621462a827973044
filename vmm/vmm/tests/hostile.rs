//! A guest that is hostile from its first instruction, on one processor and on all at once: every register of every window, at every width,
//! with any number, and doorbells at full speed. The monitor stays up, its memory does not grow, and no
//! thread is busy once the guest rests.
//!
//! It is a kernel of some instructions: that of the guest image has no way to the registers past its
//! drivers (no `CONFIG_DEVMEM`), which the agent's feature `selftest` exercises.

mod rig;

use std::{fs, time::Instant};

use rig::{
    LIMIT, Monitor, RESET, Wanted,
    acts::slots,
    ask,
    crowd::{REST, together},
    print, start, start_with,
};

/// Maps the windows, and makes the seed of the numbers: RSI is where the windows are, R9 the seed.
const SETUP: &[u8] = &[
    0x0f, 0x20, 0xd8, // mov rax, cr3
    0x48, 0x8b, 0x18, // mov rbx, [rax]
    0x48, 0x81, 0xe3, 0x00, 0xf0, 0xff, 0xff, // and rbx, -4096: the tables' second level
    0xbf, 0x00, 0x00, 0x40, 0x01, // mov edi, 20 MiB: a page of zeroes, the third level
    0x48, 0x8d, 0x4f, 0x03, // lea rcx, [rdi + 3]
    0x48, 0x89, 0x4b, 0x18, // mov [rbx + 24], rcx: for the fourth GiB
    0xb8, 0x93, 0x00, 0x00, 0xd0, // mov eax, 0xd0000093: 2 MiB of windows, not cached
    0x48, 0x89, 0x87, 0x00, 0x04, 0x00, 0x00, // mov [rdi + 1024], rax
    0xbe, 0x00, 0x00, 0x00, 0xd0, // mov esi, 0xd0000000
    0x49, 0xb9, 0x15, 0x7c, 0x4a, 0x7f, 0xb9, 0x79, 0x37, 0x9e, // mov r9, 0x9e3779b97f4a7c15
];

/// `count` accesses to the first windows, a power of two up to 8: half of them are small numbers into
/// registers, the others any number to any place, at any width, or reads.
fn hammer(count: u32, windows: u8) -> Vec<u8> {
    let page = (windows - 1) << 4;
    let mut code = vec![0x41, 0xb8]; // mov r8d, count
    code.extend(count.to_le_bytes());
    code.extend([
        0x4c,
        0x89,
        0xc8,
        0x48,
        0xc1,
        0xe0,
        0x0d,
        0x49,
        0x31,
        0xc1, // r9 ^= r9 << 13
        0x4c,
        0x89,
        0xc8,
        0x48,
        0xc1,
        0xe8,
        0x07,
        0x49,
        0x31,
        0xc1, // r9 ^= r9 >> 7
        0x4c,
        0x89,
        0xc8,
        0x48,
        0xc1,
        0xe0,
        0x11,
        0x49,
        0x31,
        0xc1, // r9 ^= r9 << 17
        0x44,
        0x89,
        0xcb, // mov ebx, r9d
        0x4c,
        0x89,
        0xc9,
        0x48,
        0xc1,
        0xe9,
        0x20, // rcx = r9 >> 32
        0x0f,
        0xba,
        0xe1,
        0x08,
        0x72,
        0x0e, // bt ecx, 8; jc any
        0x81,
        0xe3,
        0xfc,
        page,
        0x00,
        0x00, // and ebx, 0x.0fc
        0x0f,
        0xb6,
        0xd1,
        0x89,
        0x14,
        0x1e, // movzx edx, cl; mov [rsi + rbx], edx
        0xeb,
        0x46, // jmp next
        0x81,
        0xe3,
        0xf7,
        page | 0xf,
        0x00,
        0x00, // any: and ebx, 0x.ff7
        0x89,
        0xca,
        0x83,
        0xe2,
        0x07, // edx = ecx & 7
        0x83,
        0xfa,
        0x00,
        0x75,
        0x03,
        0x88,
        0x0c,
        0x1e, // 0: mov [rsi + rbx], cl
        0x83,
        0xfa,
        0x01,
        0x75,
        0x04,
        0x66,
        0x89,
        0x0c,
        0x1e, // 1: cx
        0x83,
        0xfa,
        0x02,
        0x75,
        0x03,
        0x89,
        0x0c,
        0x1e, // 2: ecx
        0x83,
        0xfa,
        0x03,
        0x75,
        0x04,
        0x48,
        0x89,
        0x0c,
        0x1e, // 3: rcx
        0x83,
        0xfa,
        0x04,
        0x75,
        0x03,
        0x8a,
        0x04,
        0x1e, // 4: mov al, [rsi + rbx]
        0x83,
        0xfa,
        0x05,
        0x75,
        0x03,
        0x8b,
        0x04,
        0x1e, // 5: eax
        0x83,
        0xfa,
        0x06,
        0x72,
        0x04,
        0x48,
        0x8b,
        0x04,
        0x1e, // 6, 7: rax
        0x41,
        0xff,
        0xc8,
        0x0f,
        0x85,
        0x75,
        0xff,
        0xff,
        0xff, // next: dec r8d; jnz
    ]);
    code
}

/// `count` notifications of the first queue of both devices.
fn ring(count: u32) -> Vec<u8> {
    let mut code = vec![0x41, 0xb8]; // mov r8d, count
    code.extend(count.to_le_bytes());
    code.extend([
        0x31, 0xc0, // xor eax, eax
        0x89, 0x46, 0x50, // mov [rsi + 0x50], eax
        0x89, 0x86, 0x50, 0x10, 0x00, 0x00, // mov [rsi + 0x1050], eax
        0x41, 0xff, 0xc8, 0x75, 0xf0, // dec r8d; jnz
    ]);
    code
}

impl Monitor {
    /// Anonymous memory in KiB: guest memory is a file's.
    fn own_memory(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no RssAnon: {status}"))
    }

    /// Processor time of all threads so far, in ticks of 10 ms.
    fn ticks(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of = |task: std::io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            // Behind the name, which is in parentheses: user and system time are fields 14 and 15.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
        };
        tasks.filter_map(of).sum()
    }

    /// From the guest's first word to its last the monitor's own memory grows by no more; then it rests.
    fn bears_it(&mut self, most_kib: u64) {
        assert_eq!(self.line(), "warm\n");
        let before = self.own_memory();
        assert_eq!(self.line(), "done\n");
        self.rests();
        let after = self.own_memory();
        assert!(
            after <= before + most_kib,
            "{before} KiB became {after} KiB"
        );
    }

    /// Waits until half a second has taken no more than a tick.
    fn rests(&self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let before = self.ticks();
            std::thread::sleep(std::time::Duration::from_millis(500));
            let took = self.ticks() - before;
            if took <= 1 {
                return;
            }
            assert!(Instant::now() < deadline, "{took} ticks in half a second");
        }
    }
}

#[test]
fn registers_and_doorbells_may_be_hammered() {
    let code = [
        SETUP.to_vec(),
        // What is made at first use is made here.
        hammer(4_000, 4),
        ring(1_000),
        print("warm\n"),
        hammer(20_000, 4),
        ring(20_000),
        print("done\n"),
        REST.to_vec(),
    ];
    let Some(mut monitor) = start(&code.concat(), 1) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    monitor.bears_it(256);

    let metrics = ask!(monitor, metrics).unwrap();
    for device in &metrics.devices {
        assert!(device.register_errors > 1000, "{device:?}");
    }
    assert!(metrics.unanswered > 1000, "{metrics:?}");
    ask!(monitor, pause).unwrap();
    ask!(monitor, resume).unwrap();
    ask!(monitor, shut_down).unwrap();
    assert_eq!(monitor.ends().code(), Some(0), "{}", monitor.errors());
}

#[test]
fn a_guest_that_resets_in_the_middle_is_the_end() {
    let code = [SETUP.to_vec(), hammer(500, 4), ring(10), RESET.to_vec()];
    let Some(mut monitor) = start(&code.concat(), 1) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    assert_eq!(monitor.ends().code(), Some(0), "{}", monitor.errors());
}

/// A monitor with all devices and some processors.
fn crowd(cpus: u8, code: &[u8]) -> Option<Monitor> {
    start_with(Wanted {
        code,
        cpus: cpus.into(),
        memory_mib: 64,
        slots: Some(&slots()),
        ..Wanted::default()
    })
}

#[test]
fn all_processors_may_hammer_all_devices_at_once() {
    const CPUS: u8 = 4;
    let rounds = [
        ([hammer(2_000, 8), ring(500)].concat(), "warm\n"),
        ([hammer(10_000, 8), ring(10_000)].concat(), "done\n"),
    ];
    let Some(mut monitor) = crowd(CPUS, &together(CPUS, SETUP, &rounds)) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    monitor.bears_it(512);

    let metrics = ask!(monitor, metrics).unwrap();
    assert_eq!(metrics.devices.len(), 8);
    for device in &metrics.devices {
        assert!(device.register_errors > 500, "{device:?}");
    }
    // All have done their part; doorbells that KVM passes on are not counted.
    ask!(monitor, pause).unwrap();
    let metrics = ask!(monitor, metrics).unwrap();
    assert_eq!(metrics.vcpus.len(), usize::from(CPUS));
    for vcpu in &metrics.vcpus {
        assert!(vcpu.mmio > 11_000, "{vcpu:?}");
    }
    ask!(monitor, resume).unwrap();
    ask!(monitor, shut_down).unwrap();
    assert_eq!(monitor.ends().code(), Some(0), "{}", monitor.errors());
}

#[test]
fn one_processor_ends_a_machine_whose_others_hammer() {
    let rounds = [(hammer(200, 8), "warm\n"), (hammer(u32::MAX, 8), "")];
    let mut code = together(3, SETUP, &rounds);
    // The first: its second round is to end the machine, by what the guest's kernel ends it with.
    let second = hammer(u32::MAX, 8);
    let at = code.windows(second.len()).position(|part| part == second);
    let at = at.unwrap();
    let act = [hammer(500, 8), RESET.to_vec(), REST.to_vec()].concat();
    code[at..at + act.len()].copy_from_slice(&act);
    let Some(mut monitor) = crowd(3, &code) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    assert_eq!(monitor.line(), "warm\n");
    assert_eq!(monitor.ends().code(), Some(0), "{}", monitor.errors());
}
