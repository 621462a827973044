//! The guest's own view of its devices: an agent that reads, writes, floods and resets each, on the
//! monitor with all of them.

use std::{
    fs::{self, File},
    os::unix::net::UnixListener,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use isopod_tests::{
    Bed, Case, Need, check_contains, check_eq,
    file_server::FileServer,
    process::{Background, eventually, run},
    procfs,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sha2::{Digest as _, Sha256};

/// The cases.
pub const CASES: &[Case] = &[Case::isopod("each_device_of_the_monitor_passes", devices)
    .needs(&[Need::Kvm, Need::SelfTest])
    .within(1200)
    // An interpreted kernel beside others on the same processors takes minutes.
    .alone()];

/// Until the guest has said how it went.
const LIMIT: Duration = Duration::from_secs(1140);

/// What the monitor's own memory may grow by from the first device's end to the last's.
const GROWTH_KIB: u64 = 1024;

/// The other end of the card's cable.
const TAP: &str = "selftest0";

/// Frames that the guest sends at least: 32, and 32 more after resets.
const FRAMES: u64 = 64;

/// All kinds, and what they are told to be.
const KINDS: &[&str] = &[
    "balloon", "blk", "console", "fs", "mem", "net", "pmem", "rng", "vsock",
];

/// The port of the host that sends everything back.
const ECHO: u32 = 1000;

/// MiB that the balloon takes.
const BALLOON_MIB: u32 = 2;

/// MiB that the guest has, and as much again that comes and goes.
const MEMORY_MIB: u32 = 128;

/// What devices say that did what only they do.
const DONE: &[&str] = &[
    "pages used; after three resets 128 MiB plugged, ",
    "512 pages given back; after three resets 512 pages given back",
    "KiB echoed, ",
    " flushes; after three resets a write is ",
    " files; after three resets ",
    "written and flushed and discarded",
    "lines; after three resets",
];

fn devices(bed: &Bed) -> Result<()> {
    let monitor = bed.machine.bin_dir.join("isopod-vmm");
    let scale = match bed.machine.interprets_kernels()? {
        Some(_) => 1,
        None => 16,
    };
    let disk = bed.dir.join("selftest.disk");
    File::create(&disk)?.set_len(16 << 20)?;
    // Read-only for the guest, whatever it tries: neither may be another afterwards.
    let (range, image) = (bed.dir.join("selftest.pmem"), &bed.machine.selftest_image);
    let mut bytes = vec![0; 4 << 20];
    isopod_guest_probe::fill(&mut bytes, 0);
    fs::write(&range, &bytes)?;
    let digest = |path: &Path| anyhow::Ok(Sha256::digest(fs::read(path)?));
    let digests = (digest(&range)?, digest(image)?);
    let server = FileServer::start(bed, "selftest")?;
    let written = bed.dir.join("selftest.console");
    let mut command = Command::new(&monitor);
    command
        .arg("run")
        .arg("--kernel")
        .arg(&bed.machine.kernel)
        .arg("--image")
        .arg(image)
        .args(["--root", "pmem", "--pmem"])
        .arg(&range)
        .arg(format!("--memory={MEMORY_MIB}"))
        .arg(format!("--memory-max={}", 2 * MEMORY_MIB))
        .arg(format!("--balloon={BALLOON_MIB}"))
        .arg(format!("--virtio-console={}", written.display()))
        .args(["--tap", TAP, "--vsock"])
        .arg(bed.dir.join("selftest.vsock"))
        .arg("--fs")
        .arg(&server.socket)
        .arg("--disk")
        .arg(&disk)
        .args(["quiet", "init=/sbin/isopod-agent", "isopod.selftest.rest"])
        .arg(format!("isopod.selftest={scale}"))
        .arg(format!("isopod.selftest.memory={MEMORY_MIB}"))
        .arg(format!("isopod.selftest.balloon={}", BALLOON_MIB * 256));
    let port = UnixListener::bind(bed.dir.join(format!("vsock_{ECHO}")))?;
    let echo = std::thread::spawn(move || echo(&port));
    let mut guest = Background::start(&mut command)?;
    let pid = guest.pid();

    let first = guest.line(LIMIT, |line| line.contains("selftest: "));
    first.context("the first device")?;
    let before = procfs::anonymous_kib(pid)?;
    for (asked, signal) in [("take", Signal::SIGUSR1), ("give", Signal::SIGUSR2)] {
        let asks = format!("the host is to {asked} its memory");
        let ends = |line: &str| line.contains(&asks) || line.contains(" passed, ");
        check_contains!(guest.line(LIMIT, ends)?, asks.as_str());
        kill(Pid::from_raw(pid.cast_signed()), signal)?;
    }
    // The last device to be tested is the card: until then its other end is down, and drops frames.
    let up = ["link", "set", "dev", TAP, "up"];
    run(Command::new("ip").args(up), None, Duration::from_secs(30))?.ok()?;
    let last = guest.line(LIMIT, |line| line.contains(" passed, "));
    let last = last.context("the last device")?;
    let after = procfs::anonymous_kib(pid)?;

    let mut kinds = Vec::new();
    for line in guest.lines() {
        let Some((_, told)) = line.split_once("selftest: ") else {
            continue;
        };
        if let Some((kind, _)) = told.split_once(" virtio") {
            check_contains!(told, ": passed: ");
            kinds.push(kind.to_owned());
        }
    }
    kinds.sort();
    kinds.dedup();
    check_eq!(kinds, KINDS);
    check_contains!(last, " passed, 0 failed");
    let twice = "the console's lines, from before its resets and after them";
    eventually(twice, Duration::from_secs(30), || {
        let lines = fs::read_to_string(&written)?;
        Ok((lines.matches("selftest line 0").count() == 2).then_some(()))
    })?;
    let said = guest.lines().join("\n");
    for done in DONE {
        check_contains!(said, *done);
    }
    eventually("the end of both connections", LIMIT, || {
        Ok(echo.is_finished().then_some(()))
    })?;
    let arrived = frames()?;
    ensure!(arrived >= FRAMES, "{arrived} frames of {FRAMES} arrived");
    ensure!(
        after <= before + GROWTH_KIB,
        "the monitor's own memory grew from {before} to {after} KiB"
    );
    let busy = "threads of devices that rest once the guest does";
    eventually(busy, Duration::from_secs(30), || {
        let before = ticks(pid)?;
        std::thread::sleep(Duration::from_millis(500));
        let took = ticks(pid)?.saturating_sub(before);
        Ok((took <= 1).then_some(()))
    })?;
    ensure!(procfs::process(pid).is_some(), "the monitor is gone");
    drop(guest);
    ensure!(
        digests == (digest(&range)?, digest(image)?),
        "a file that the guest may only read changed"
    );
    let left = fs::read_dir(&server.shared)?.count();
    check_eq!(left, 0, "files in the shared directory");
    Ok(())
}

/// Sends back what comes on the guest's two connections, before and after the resets.
fn echo(port: &UnixListener) {
    for stream in port.incoming().take(2).map_while(Result::ok) {
        // A guest that leaves in the middle is told of by its own side.
        let _ = std::io::copy(&mut &stream, &mut &stream);
    }
}

/// Frames that came out of the card.
fn frames() -> Result<u64> {
    let show = ["-json", "-statistics", "link", "show", "dev", TAP];
    let shown = run(Command::new("ip").args(show), None, Duration::from_secs(30))?.ok()?;
    let links: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    let packets = links.pointer("/0/stats64/rx/packets");
    let packets = packets.and_then(serde_json::Value::as_u64);
    packets.with_context(|| format!("no count in {}", shown.out()))
}

/// Processor time of all threads but those of vCPUs, in ticks of 10 ms.
fn ticks(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else {
            continue;
        };
        if !stat.contains("(vcpu-") {
            sum += procfs::ticks_of(&stat).context("a thread's times")?;
        }
    }
    Ok(sum)
}
