//! Back ends that come and go, memory that grows and shrinks, as a guest of a few instructions sees them:
//! it looks at the devices' registers, and says what it finds.

mod rig;

use std::{
    fs::{self, File},
    io::Read,
    os::{fd::AsFd, unix::net::UnixStream},
    time::Instant,
};

use isopod_control::{monitor::BackEnd, parcel};
use rig::{
    FOREVER, LIMIT, Monitor, Wanted,
    acts::{answer, disk, refused, slots},
    ask,
    code::{DEVICES, map_devices, wait_for},
    print, start_with,
};
use ttrpc::Code;

/// In the order of the machine: pmem-root, rng and the console come first.
const BALLOON: u32 = 3;
const MEMORY: u32 = 4;
const DISK: u32 = 5;
const NET: u32 = 7;

fn started(parts: &[Vec<u8>]) -> Option<Monitor> {
    let code = [map_devices(), parts.concat(), FOREVER.to_vec()].concat();
    let slots = slots();
    let mut monitor = start_with(Wanted {
        code: &code,
        cpus: 1,
        memory_mib: 64,
        slots: Some(&slots),
        ..Wanted::default()
    })?;
    if let Err(error) = ask!(monitor, boot) {
        panic!("{error}: {}", monitor.errors());
    }
    Some(monitor)
}

#[test]
fn a_disk_comes_and_goes() {
    let Some(mut monitor) = started(&[
        wait_for(DISK, 0, 100),
        print("came\n"),
        wait_for(DISK, 0, 0),
        print("gone\n"),
        wait_for(DISK, 0, 7),
        print("another\n"),
        wait_for(DISK + 1, 0, 9),
        print("read-only\n"),
    ]) else {
        return;
    };
    let before = monitor.open_descriptors();
    monitor
        .attach("blk-0", BackEnd::DISK, &[&disk(100)])
        .unwrap();
    assert_eq!(monitor.line(), "came\n");
    monitor.detach("blk-0").unwrap();
    assert_eq!(monitor.line(), "gone\n");
    assert_eq!(monitor.open_descriptors(), before, "it was closed");
    monitor.attach("blk-0", BackEnd::DISK, &[&disk(7)]).unwrap();
    assert_eq!(monitor.line(), "another\n");
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(9 * 512).unwrap();
    let only = File::open(path.path()).unwrap();
    monitor.attach("blk-1", BackEnd::DISK, &[&only]).unwrap();
    assert_eq!(monitor.line(), "read-only\n");
    monitor.lives();
}

#[test]
fn what_does_not_fit_a_slot_is_refused_and_closed() {
    let Some(mut monitor) = started(&[]) else {
        return;
    };
    let before = monitor.open_descriptors();
    let (stream, _other) = UnixStream::pair().unwrap();
    let (pipe, _end) = std::io::pipe().unwrap();
    let read_only = File::open("/proc/self/exe").unwrap();
    let directory = File::open("/").unwrap();
    let file = disk(1);
    use BackEnd::{DISK, STREAM, TAP, UNSPECIFIED};
    for slot in [
        "",
        "blk",
        "blk-2",
        "blk-00",
        "blk--1",
        "net-1",
        "rng",
        "pmem-root",
        "mem",
    ] {
        let told = monitor.attach(slot, DISK, &[&file]);
        refused(told, Code::NOT_FOUND, "none of that name");
        refused(monitor.detach(slot), Code::NOT_FOUND, "none of that name");
    }
    for (slot, kind, what, words) in [
        ("blk-0", TAP, &file as &dyn AsFd, "takes a disk"),
        ("net-0", DISK, &file, "takes a tap device"),
        ("console", DISK, &file, "takes a stream"),
        ("blk-0", UNSPECIFIED, &file, "kind is not said"),
        ("blk-0", DISK, &pipe, "neither a regular file"),
        ("blk-0", DISK, &stream, "neither a regular file"),
        ("blk-0", DISK, &directory, "neither a regular file"),
        ("blk-0", DISK, &read_only, "writable, its disk is not"),
        ("net-0", TAP, &file, "tap device"),
        ("net-0", TAP, &stream, "tap device"),
        ("console", STREAM, &file, "stream"),
        ("console", STREAM, &pipe, "stream"),
    ] {
        let told = monitor.attach(slot, kind, &[what]);
        refused(told, Code::INVALID_ARGUMENT, words);
    }
    let told = monitor.attach("blk-0", DISK, &[&file, &file]);
    refused(told, Code::INVALID_ARGUMENT, "2 descriptors");
    let told = monitor.attach("net-0", TAP, &[&file as &dyn AsFd; 8]);
    refused(told, Code::INVALID_ARGUMENT, "tap device");
    for slot in ["blk-0", "net-0", "console"] {
        refused(monitor.detach(slot), Code::FAILED_PRECONDITION, "is empty");
    }
    assert_eq!(monitor.open_descriptors(), before);
    monitor.lives();
}

#[test]
fn a_slot_in_use_keeps_what_it_has() {
    let Some(mut monitor) = started(&[wait_for(DISK, 0, 100), print("came\n")]) else {
        return;
    };
    monitor
        .attach("blk-0", BackEnd::DISK, &[&disk(100)])
        .unwrap();
    let told = monitor.attach("blk-0", BackEnd::DISK, &[&disk(5)]);
    refused(told, Code::ALREADY_EXISTS, "in use");
    assert_eq!(monitor.line(), "came\n");
    monitor.detach("blk-0").unwrap();
    refused(
        monitor.detach("blk-0"),
        Code::FAILED_PRECONDITION,
        "is empty",
    );
}

#[test]
fn parcels_that_nobody_sent_or_that_are_rubbish_attach_nothing() {
    let Some(mut monitor) = started(&[]) else {
        return;
    };
    let before = monitor.open_descriptors();
    let told = monitor.join("blk-0", BackEnd::DISK, 1);
    refused(told, Code::FAILED_PRECONDITION, "parcel 1 is not there");
    for rubbish in [&b""[..], b"x", &[0xff; 8], &[0; 4096]] {
        rustix::net::send(&monitor.parcels, rubbish, rustix::net::SendFlags::empty()).unwrap();
    }
    let file = disk(1);
    for number in 100..200 {
        // Until the socket is full: nobody reads it but for a parcel that is asked for.
        let _ = parcel::send(&monitor.parcels, number, &[file.as_fd()]);
    }
    for _ in 0..10 {
        let told = monitor.join("blk-0", BackEnd::DISK, u64::MAX);
        refused(told, Code::FAILED_PRECONDITION, "is not there");
    }
    let held = monitor.open_descriptors();
    assert!(held <= before + parcel::MAX_WAITING, "{before} {held}");
    monitor.attach("blk-0", BackEnd::DISK, &[&file]).unwrap();
    monitor.lives();
}

#[test]
fn memory_is_asked_for_within_what_there_is() {
    let Some(mut monitor) = started(&[
        // struct virtio_mem_config: requested_size; struct virtio_balloon_config: num_pages.
        wait_for(MEMORY, 48, 128 << 20),
        print("more\n"),
        wait_for(BALLOON, 0, 16 << 8),
        print("less\n"),
        wait_for(MEMORY, 48, 0),
        print("as before\n"),
    ]) else {
        return;
    };
    let range = Code::OUT_OF_RANGE;
    for hotplug in [1, 257, 258, 1 << 43, u64::MAX] {
        refused(monitor.resize(Some(hotplug), None), range, "hotplug_mib");
    }
    for balloon in [64, 1 << 32, u64::MAX] {
        // Neither is done if one cannot be.
        let told = monitor.resize(Some(128), Some(balloon));
        refused(told, range, "balloon_mib");
    }
    assert_eq!(monitor.counter("mem", "requested_bytes"), 0);
    monitor.resize(None, None).unwrap();
    monitor.resize(Some(128), None).unwrap();
    assert_eq!(monitor.line(), "more\n");
    monitor.resize(None, Some(16)).unwrap();
    assert_eq!(monitor.line(), "less\n");
    assert_eq!(monitor.counter("balloon", "target_pages"), 16 << 8);
    monitor.resize(Some(0), Some(0)).unwrap();
    assert_eq!(monitor.line(), "as before\n");
    assert_eq!(monitor.counter("mem", "plugged_bytes"), 0);
}

#[test]
fn a_machine_without_slots_says_so() {
    let Some(mut monitor) = rig::start(&FOREVER, 1) else {
        return;
    };
    let wrong = Code::FAILED_PRECONDITION;
    refused(
        monitor.resize(Some(2), None),
        wrong,
        "memory that can be added",
    );
    refused(monitor.resize(None, Some(2)), wrong, "balloon");
    refused(answer(ask!(monitor, console_tail)), wrong, "console");
    // Before the boot as after.
    refused(monitor.detach("blk-0"), Code::NOT_FOUND, "blk-0");
    ask!(monitor, boot).unwrap();
    refused(monitor.detach("blk-0"), Code::NOT_FOUND, "blk-0");
    monitor.lives();
}

/// A guest touches memory that could be added and was not.
#[test]
fn memory_that_was_not_added_is_not_there() {
    // The region is at 4 GiB: mov rax, 0x10005 (a page directory at 64 KiB + 4 KiB) ... the fifth GiB is
    // mapped by a large page of the directory that the devices have: its first entry.
    let mut code = vec![0x48, 0xb8];
    // PD[0] = 4 GiB, large; the windows of the fourth GiB begin at entry 128.
    code.extend(((4u64 << 30) | 0x93).to_le_bytes());
    code.extend([0x48, 0x89, 0x04, 0x25]);
    code.extend(0x1_0000u32.to_le_bytes());
    // mov dword [0xc0000000 + 64], 0x1234 through that entry; read it back.
    code.extend([0xbb]);
    code.extend(0xc000_0040u32.to_le_bytes());
    code.extend([0xc7, 0x03]);
    code.extend(0x1234u32.to_le_bytes());
    // cmp dword [rbx], -1: as on an empty bus
    code.extend([0x83, 0x3b, 0xff, 0x75, 0xfb]);
    let Some(mut monitor) = started(&[code, print("nothing\n")]) else {
        return;
    };
    assert_eq!(monitor.line(), "nothing\n");
    let metrics = ask!(monitor, metrics).unwrap();
    assert!(metrics.unanswered >= 2, "{metrics:?}");
}

#[test]
fn somebody_is_at_the_console_or_nobody_is() {
    let Some(mut monitor) = started(&[]) else {
        return;
    };
    let (stream, ours) = UnixStream::pair().unwrap();
    monitor
        .attach("console", BackEnd::STREAM, &[&stream])
        .unwrap();
    let (second, _) = UnixStream::pair().unwrap();
    let told = monitor.attach("console", BackEnd::STREAM, &[&second]);
    refused(told, Code::ALREADY_EXISTS, "in use");
    monitor.detach("console").unwrap();
    drop(stream);
    ours.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0, "it was closed");
    assert_eq!(ask!(monitor, console_tail).unwrap().text, "");
    monitor.lives();
}

/// A tap device of a network namespace of the test's own.
fn tap() -> std::os::fd::OwnedFd {
    let made = std::thread::spawn(|| {
        // Only this thread is in it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        isopod_memory::tap::open("tap0").unwrap()
    });
    made.join().unwrap()
}

#[test]
fn a_network_comes_and_goes() {
    let Some(mut monitor) = started(&[
        // struct virtio_net_config: status, then the number of pairs.
        wait_for(NET, 6, 0x1_0001),
        print("up\n"),
        wait_for(NET, 6, 0x1_0000),
        print("down\n"),
    ]) else {
        return;
    };
    let one = tap();
    let told = monitor.attach("net-0", BackEnd::TAP, &[&one, &one]);
    refused(told, Code::INVALID_ARGUMENT, "2 queue pairs");
    monitor.attach("net-0", BackEnd::TAP, &[&one]).unwrap();
    assert_eq!(monitor.line(), "up\n");
    let told = monitor.attach("net-0", BackEnd::TAP, &[&tap()]);
    refused(told, Code::ALREADY_EXISTS, "in use");
    monitor.detach("net-0").unwrap();
    assert_eq!(monitor.line(), "down\n");
    monitor.lives();
}

#[test]
fn a_guest_that_hammers_registers_meets_an_owner_that_attaches() {
    // Writes rising numbers to rising offsets of all windows, for ever.
    let mut hammer = vec![0xbb];
    hammer.extend(DEVICES.to_le_bytes());
    // xor ecx, ecx; again: mov [rbx + rcx], ecx; add ecx, 4; and ecx, 0x7ffc; jmp again
    hammer.extend([0x31, 0xc9, 0x89, 0x0c, 0x0b, 0x83, 0xc1, 0x04, 0x81, 0xe1]);
    hammer.extend(0x7ffcu32.to_le_bytes());
    hammer.extend([0xeb, 0xf2]);
    let Some(mut monitor) = started(&[print("now\n"), hammer]) else {
        return;
    };
    assert_eq!(monitor.line(), "now\n");
    let file = disk(8);
    let begin = Instant::now();
    for round in 0..20 {
        monitor.attach("blk-0", BackEnd::DISK, &[&file]).unwrap();
        monitor
            .resize(Some(2 * (round % 3)), Some(round % 5))
            .unwrap();
        if round % 4 == 0 {
            ask!(monitor, pause).unwrap();
            ask!(monitor, resume).unwrap();
        }
        monitor.detach("blk-0").unwrap();
        assert!(begin.elapsed() < LIMIT);
    }
    monitor.lives();
    ask!(monitor, shut_down).unwrap();
    assert_eq!(monitor.ends().code(), Some(0));
}

#[test]
fn each_device_has_a_thread_and_a_filter() {
    let Some(monitor) = started(&[]) else { return };
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", monitor.child.id())).unwrap() {
        let path = thread.unwrap().path();
        let status = fs::read_to_string(path.join("status")).unwrap();
        let name = fs::read_to_string(path.join("comm"))
            .unwrap()
            .trim()
            .to_owned();
        assert!(status.contains("Seccomp:\t2"), "{name}: {status}");
        names.push(name);
    }
    for name in [
        "pmem-root",
        "rng",
        "console",
        "balloon",
        "mem",
        "blk-0",
        "blk-1",
        "net-0",
    ] {
        assert!(
            names.iter().any(|thread| thread == name),
            "{name}: {names:?}"
        );
    }
}
