//! What is killed while a guest boots, under either engine: the container's creation fails, nothing stays,
//! and the same name can be used again.
//!
//! A pod's host processes are all there by then, and nothing of the guest: it has not spoken yet.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isopod_tests::{
    Bed, Case, Need,
    leftovers::Snapshot,
    process::eventually,
    procfs::{self, Process},
    settings::quoted,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The cases.
pub const CASES: &[Case] = &[
    Case::isopod("the_shim_is_killed_as_qemu_boots", |bed| {
        dies(bed, QEMU, SHIM)
    }),
    Case::isopod("the_monitor_is_killed_as_qemu_boots", |bed| {
        dies(bed, QEMU, QEMU.monitor)
    }),
    Case::isopod("the_file_server_is_killed_as_qemu_boots", |bed| {
        dies(bed, QEMU, FILE_SERVER)
    }),
    Case::isopod("the_shim_is_killed_as_kvm_boots", |bed| {
        dies(bed, KVM, SHIM)
    })
    .needs(&[Need::Kvm]),
    Case::isopod("the_monitor_is_killed_as_kvm_boots", |bed| {
        dies(bed, KVM, KVM.monitor)
    })
    .needs(&[Need::Kvm]),
    Case::isopod("the_file_server_is_killed_as_kvm_boots", |bed| {
        dies(bed, KVM, FILE_SERVER)
    })
    .needs(&[Need::Kvm]),
];

const SHIM: &str = "containerd-shim-isopod-v2";
const FILE_SERVER: &str = "isopod-fs";

/// An engine, and the program that its guests run in.
#[derive(Clone, Copy)]
struct Engine {
    name: &'static str,
    monitor: &'static str,
}

const QEMU: Engine = Engine {
    name: "qemu",
    monitor: "qemu-system-x86_64",
};
const KVM: Engine = Engine {
    name: "kvm",
    monitor: "isopod-vmm",
};

/// Processor time of the guest so far, in ticks of 10 ms, when it is killed: it has begun to boot, and no
/// engine is done by then.
const BEGUN: u64 = 10;
/// Containers of one name that die.
const TIMES: usize = 2;

fn dies(bed: &Bed, engine: Engine, victim: &str) -> Result<()> {
    bed.settings
        .borrow_mut()
        .set("", "engine", quoted(engine.name));
    let before = Snapshot::take(bed)?;
    for _ in 0..TIMES {
        let run = bed.container().named("dies");
        let mut run = run.background(["sleep", "100000"])?;
        eventually("a guest that boots", Duration::from_secs(60), || {
            let Some(monitor) = one(engine.monitor)? else {
                return Ok(None);
            };
            Ok((procfs::ticks(monitor.pid).unwrap_or(0) >= BEGUN).then_some(()))
        })?;
        let victim = one(victim)?.with_context(|| format!("{victim} does not run"))?;
        kill(Pid::from_raw(victim.pid.cast_signed()), Signal::SIGKILL)?;
        let code = run.finish(Duration::from_secs(60))?;
        ensure!(code != 0, "a container was made in a pod that died");
        let said = run.lines().join("\n");
        ensure!(!said.contains("panicked at"), "the shim panicked: {said}");
        // `ctr` forgets the container; what the pod had is the shim's and containerd's affair.
        before.assert_restored(bed)?;
    }
    Ok(())
}

/// The process of a program that there is one of at most.
fn one(program: &str) -> Result<Option<Process>> {
    let mut found = procfs::named(program)?;
    // The monitor's program has measured this machine's KVM before it is a monitor.
    found.retain(|process| !process.command_line.ends_with(" probe"));
    ensure!(found.len() <= 1, "not one: {found:?}");
    Ok(found.pop())
}
