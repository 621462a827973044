//! The demonstration (`make demo`): an image made on the spot runs under a private containerd, in a
//! virtual machine of its own, and the screen shows what happened and what it cost.
//!
//! It uses the test framework's bed, so that nothing stays behind whatever happens.
#![forbid(unsafe_code)]

mod progress;
mod report;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use isopod_tests::{
    Bed, Machine, Need, Runtime,
    bed::{self, Role},
    image::Files,
    process, procfs,
};

use progress::Progress;
use report::{Launched, Row, table};

/// What the container does: says where it is, then stays until its input ends.
const COMMAND: &str = "echo \"hello from a container of $(hostname)\"; \
    echo \"kernel: $(uname -r)\"; echo \"processes: $(ls -d /proc/[0-9]* | wc -l)\"; cat >/dev/null";
/// Of the guest's kernel, from its entry to the container's first output.
const INSTRUCTIONS: f64 = 135e6;
/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// The same where the guest's kernel is interpreted, a thousand times slower than its programs.
const LONG_PATIENCE: Duration = Duration::from_secs(900);

fn main() -> ExitCode {
    let outcome = match bed::role() {
        Role::Suite => outside(),
        Role::Init => bed::init(),
        Role::Body(_) => demonstrate().map(|()| 0),
    };
    match outcome {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("isopod-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Looks whether the machine can, then makes the bed.
fn outside() -> Result<i32> {
    let machine = Machine::find();
    if let Some(why) = [Need::Containers, Need::Isopod]
        .into_iter()
        .find_map(|need| machine.lacks(need))
    {
        bail!("{why}; `make demo` installs and builds what is missing");
    }
    step("a private containerd, with namespaces, disk and network of its own");
    bed::make_shown("demo", &format!("isopod-demo-{}", std::process::id()))
}

fn demonstrate() -> Result<()> {
    let machine = Machine::find();
    step("an OCI image of a static busybox");
    let interpreted = match machine.engine.as_str() {
        "kvm" => machine.interprets_kernels()?,
        _ => None,
    };
    let bed = Bed::enter(machine, Runtime::Isopod, &Files::new())?;
    let patience = match interpreted {
        Some(speed) => {
            step(&format!(
                "this machine's KVM emulates supervisor mode: it interprets guests' kernels, {:.1} million \
                 instructions a second. What takes a second elsewhere takes about {:.0} s here (with ENGINE=qemu: \
                 one or two)",
                speed / 1e6,
                INSTRUCTIONS / speed
            ));
            bed.settings
                .borrow_mut()
                .set("timeouts", "boot", LONG_PATIENCE.as_secs())
                .set("timeouts", "request", LONG_PATIENCE.as_secs());
            LONG_PATIENCE
        }
        None => PATIENCE,
    };
    let container = bed.container().named("hello");
    step("ctr run --rm --runtime io.containerd.isopod.v2 IMAGE hello sh -c ...");
    println!();

    let mut events = bed.events()?;
    let began = Instant::now();
    let mut running = container.background(["sh", "-c", COMMAND])?;
    let progress = Progress::start(bed.containerd().log());
    let first = running
        .line(patience, |line| line.starts_with("hello "))
        .with_context(|| bed.log())?;
    drop(progress);
    let first_output = began.elapsed();
    events.wait_within(patience, "/tasks/start", |event| {
        event.text("container_id") == container.id()
    })?;
    let kernel = running.line(patience, |line| line.starts_with("kernel: "))?;
    let processes = running.line(patience, |line| line.starts_with("processes: "))?;
    for line in [&first, &kernel, &processes] {
        println!("    {line}");
    }
    let launched = process::eventually("the shim's report", Duration::from_secs(5), || {
        Ok(bed.log().lines().find_map(Launched::in_line))
    })?;
    let memory = memory()?;
    running.close_stdin();
    let code = running.finish(patience)?;
    if code != 0 {
        bail!("the container ended with {code}\n{}", bed.log());
    }

    let host = nix::sys::utsname::uname()?
        .release()
        .to_string_lossy()
        .into_owned();
    println!();
    println!("  guest kernel  {}", launched.kernel);
    println!("  host kernel   {host}");
    println!("  engine        {}: {}", launched.engine, launched.why);
    let started: u64 = launched.stages.iter().map(|row| row.value).sum();
    let total = u64::try_from(first_output.as_millis()).unwrap_or(u64::MAX);
    let mut rows = launched.stages;
    rows.push(Row::new(
        "containerd, shim, container",
        total.saturating_sub(started),
    ));
    rows.push(Row::new("ctr run to first output", total));
    println!("\n{}", table("where the time went", "ms", &rows));
    println!(
        "{}",
        table("memory of the pod on the host (PSS)", "KiB", &memory)
    );
    Ok(())
}

/// What each host process of the pod holds. QEMU's includes the guest's memory as far as it is touched.
fn memory() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for program in [
        "containerd-shim-isopod-v2",
        "isopod-fs",
        "qemu-system-x86_64",
        "isopod-vmm",
    ] {
        for process in procfs::named(program)? {
            rows.push(Row::new(program, procfs::pss_kib(process.pid)?));
        }
    }
    Ok(rows)
}

/// Says what comes next.
fn step(text: &str) {
    let mut out = std::io::stdout();
    let _ = if out.is_terminal() {
        writeln!(out, "\x1b[1m==>\x1b[0m {text}")
    } else {
        writeln!(out, "==> {text}")
    };
}
