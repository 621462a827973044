//! A guest of a few instructions, driven through the states. Where a machine has no KVM there is
//! nothing to drive: the tests say so and pass.

use std::sync::atomic::{AtomicU64, Ordering};

use isopod_memory::{Bytes, GuestAddress};

use super::*;
use crate::{Entry, FileMapping, Flow, HypervisorError, Protocol, Vm};

const CODE: u64 = 0x1000;
const COUNT: u16 = 0x10;
const RESET: u16 = 0x11;
const FILE: u64 = 0x20_0000;

/// `again: inc rax; out COUNT, eax; jmp again`
const COUNTING: &[u8] = &[0x48, 0xff, 0xc0, 0xe7, COUNT as u8, 0xeb, 0xf9];
/// `hlt; jmp`
const HALTED: &[u8] = &[0xf4, 0xeb, 0xfd];
/// `out RESET, al`
const RESETTING: &[u8] = &[0xe6, RESET as u8];
/// `ud2` without a table of interrupts
const FAULTING: &[u8] = &[0x0f, 0x0b];
/// `mov [FILE], eax; mov eax, [FILE]; out COUNT, eax; out RESET, al`
const WRITING_FILE: &[u8] = &[
    0x89,
    0x04,
    0x25,
    0,
    0,
    0x20,
    0,
    0x8b,
    0x04,
    0x25,
    0,
    0,
    0x20,
    0,
    0xe7,
    COUNT as u8,
    0xe6,
    RESET as u8,
];

#[derive(Default)]
struct Counter {
    last: AtomicU64,
    mmio_writes: AtomicU64,
}

impl Bus for Counter {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, port: u16, data: &[u8]) -> Flow {
        if port == RESET {
            return Flow::Reset;
        }
        let value = data.try_into().map_or(0, u32::from_le_bytes);
        self.last.store(value.into(), Ordering::SeqCst);
        Flow::Continue
    }
    fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn mmio_write(&self, _address: u64, _data: &[u8]) {
        self.mmio_writes.fetch_add(1, Ordering::SeqCst);
    }
}

struct Rig {
    vm: Vm,
    bus: Arc<Counter>,
    runners: Runners,
    ended: std::sync::mpsc::Receiver<()>,
}

fn boot(code: &[u8], file: Option<FileMapping>) -> Option<Rig> {
    let device = match Vm::open_device() {
        Ok(device) => device,
        Err(error) => {
            eprintln!("not tested: {error}");
            return None;
        }
    };
    let vm = Vm::new(device).unwrap();
    let memory = isopod_memory::anonymous(&[(0, 1 << 20)]).unwrap();
    memory.write_slice(code, GuestAddress(CODE)).unwrap();
    let tables = [
        (0x2000, 0x3003u64),
        (0x3000, 0x4003),
        (0x4000, 0x83),
        (0x4008, 0x20_0083),
    ];
    for (at, entry) in tables {
        memory.write_obj(entry, GuestAddress(at)).unwrap();
    }
    vm.set_memory(&memory).unwrap();
    if let Some(file) = file {
        vm.map_file(FILE, file).unwrap();
    }
    vm.create_interrupt_controllers().unwrap();
    let vcpu = vm.create_vcpu(0, 1).unwrap();
    let entry = Entry {
        instruction: CODE,
        gdt: 0x500,
        protocol: Protocol::Linux64 {
            stack: 0x8000,
            zero_page: 0,
            page_tables: 0x2000,
        },
    };
    for (index, descriptor) in entry.descriptors().into_iter().enumerate() {
        let at = GuestAddress(entry.gdt + 8 * index as u64);
        memory.write_obj(descriptor, at).unwrap();
    }
    vcpu.enter_at(&entry).unwrap();
    let bus = Arc::new(Counter::default());
    let (end, ended) = std::sync::mpsc::channel();
    let as_bus: Arc<dyn Bus> = Arc::clone(&bus) as Arc<dyn Bus>;
    let prepare: Arc<dyn Fn() -> std::io::Result<()> + Send + Sync> = Arc::new(|| Ok(()));
    let on_end = Box::new(move || end.send(()).unwrap());
    let runners = Runners::start(vec![vcpu], 1, &as_bus, &prepare, on_end).unwrap();
    Some(Rig {
        vm,
        bus,
        runners,
        ended,
    })
}

impl Rig {
    fn count(&self) -> u64 {
        self.bus.last.load(Ordering::SeqCst)
    }

    fn wait_for_more_than(&self, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.count() <= count {
            assert!(Instant::now() < deadline, "the guest does not run");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn run_to_its_end(&mut self) -> End {
        self.runners.resume().unwrap();
        self.ended.recv_timeout(Duration::from_secs(20)).unwrap();
        self.runners.stop().unwrap()
    }
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    let Some(mut rig) = boot(COUNTING, None) else {
        return;
    };
    assert!(rig.runners.is_paused(), "as it begins");
    for _ in 0..20 {
        let before = rig.count();
        rig.runners.resume().unwrap();
        rig.wait_for_more_than(before);
        rig.runners.pause().unwrap();
        let stopped = rig.count();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(rig.count(), stopped);
    }
    rig.runners.resume().unwrap();
    assert!(matches!(rig.runners.stop(), Ok(End::Stopped)));
    assert!(matches!(
        rig.runners.resume(),
        Err(HypervisorError::WrongState { .. })
    ));
}

#[test]
fn a_halted_guest_is_paused_and_stopped_too() {
    let Some(mut rig) = boot(HALTED, None) else {
        return;
    };
    rig.runners.resume().unwrap();
    thread::sleep(Duration::from_millis(20));
    rig.runners.pause().unwrap();
    rig.runners.resume().unwrap();
    assert!(matches!(rig.runners.stop(), Ok(End::Stopped)));
}

#[test]
fn a_reset_is_an_end_by_port_and_by_triple_fault() {
    for code in [RESETTING, FAULTING] {
        let Some(mut rig) = boot(code, None) else {
            return;
        };
        assert!(matches!(rig.run_to_its_end(), End::Reset));
    }
}

#[test]
fn a_running_guest_is_not_looked_into() {
    let Some(rig) = boot(COUNTING, None) else {
        return;
    };
    rig.runners.resume().unwrap();
    assert!(rig.runners.each(Vcpu::save).is_err());
}

#[test]
fn a_saved_guest_goes_on_in_another_machine() {
    let Some(rig) = boot(COUNTING, None) else {
        return;
    };
    rig.runners.resume().unwrap();
    rig.wait_for_more_than(100);
    rig.runners.pause().unwrap();
    let (shared, vcpus) = (
        rig.vm.save().unwrap(),
        rig.runners.each(Vcpu::save).unwrap(),
    );
    let reached = rig.count();
    let json = serde_json::to_string(&(&shared, &vcpus)).unwrap();
    drop(rig);

    let other = boot(HALTED, None).unwrap();
    let (shared, vcpus): (crate::state::VmState, Vec<crate::state::VcpuState>) =
        serde_json::from_str(&json).unwrap();
    other.vm.restore(&shared).unwrap();
    other.runners.each(|vcpu| vcpu.restore(&vcpus[0])).unwrap();
    // The program is memory, which is saved by others.
    {
        let memory = {
            let vcpu = other.runners.runners[0].vcpu.lock().unwrap();
            vcpu.memory().clone()
        };
        memory.write_slice(COUNTING, GuestAddress(CODE)).unwrap();
    }
    other.runners.resume().unwrap();
    other.wait_for_more_than(reached);
}

#[test]
fn a_file_that_is_shown_to_a_guest_cannot_be_written_by_it() {
    use std::io::{Read, Seek, Write};
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0x5a; 4096]).unwrap();
    let mapping = FileMapping::new(&file).unwrap();
    let Some(mut rig) = boot(WRITING_FILE, Some(mapping)) else {
        return;
    };
    assert!(matches!(rig.run_to_its_end(), End::Reset));
    assert_eq!(rig.count(), 0x5a5a_5a5a, "the guest reads the file");
    assert_eq!(rig.bus.mmio_writes.load(Ordering::SeqCst), 1);
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [0x5a; 4096]);
}
