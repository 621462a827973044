//! What goes wrong before a container exists: Create fails soon, says what and what to do, leaves nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use isopod_tests::{Bed, Case, Finished, check_contains, process, settings::quoted};

/// The cases.
pub const CASES: &[Case] = &[
    Case::isopod("kernel_is_missing", kernel_missing),
    Case::isopod("kernel_is_empty", kernel_empty),
    Case::isopod("kernel_is_truncated", kernel_truncated),
    Case::isopod("kernel_is_something_else", kernel_text),
    Case::isopod("kernel_is_a_directory", kernel_directory),
    Case::isopod("image_is_missing", image_missing),
    Case::isopod("image_is_truncated", image_truncated),
    Case::isopod("image_is_something_else", image_random),
    Case::isopod("image_has_no_agent", image_empty),
    Case::isopod("image_has_an_agent_that_dies", image_dying),
    Case::isopod("image_has_an_agent_that_never_speaks", image_silent),
    Case::isopod("qemu_is_missing", qemu_missing),
    Case::isopod("qemu_ends_at_once", qemu_false),
    Case::isopod("file_server_is_missing", file_server_missing),
    Case::isopod("launcher_is_missing", launcher_missing),
    Case::isopod("settings_have_an_unknown_key", unknown_key),
    Case::isopod("settings_are_missing", no_settings),
    Case::isopod("monitor_is_missing", monitor_missing),
    Case::isopod("annotation_is_not_allowed", annotation),
    Case::isopod("a_good_pod_follows_a_failed_one", recovers),
];

/// Within a second the shim must answer; `ctr` and containerd need some of their own, and the machine may
/// be busy.
const SOON: Duration = Duration::from_secs(4);

fn create_fails(bed: &Bed, parts: &[&str]) -> Result<Finished> {
    let run = bed.container().run(["true"])?.code_is(1)?;
    for part in parts {
        check_contains!(run.err(), *part);
    }
    ensure!(
        !run.err().contains("panicked at"),
        "the shim panicked: {}",
        run.err()
    );
    Ok(run)
}

/// The error names the file and what to do about it, at once.
fn names(bed: &Bed, key: &str, path: &Path, parts: &[&str]) -> Result<()> {
    bed.settings.borrow_mut().path(key, path);
    let mut all = vec![path.to_str().context("a path in UTF-8")?];
    all.extend(parts);
    let run = create_fails(bed, &all)?;
    ensure!(run.took < SOON, "it took {:?}", run.took);
    Ok(())
}

fn missing(bed: &Bed) -> PathBuf {
    bed.dir.join("does-not-exist")
}

/// A shortened copy of a file.
fn shortened(bed: &Bed, path: &Path, length: u64) -> Result<PathBuf> {
    let copy = bed.dir.join("disk/shortened");
    fs::copy(path, &copy)?;
    fs::File::options()
        .write(true)
        .open(&copy)?
        .set_len(length)?;
    Ok(copy)
}

fn kernel_missing(bed: &Bed) -> Result<()> {
    names(
        bed,
        "kernel",
        &missing(bed),
        &["guest kernel", "No such file", "isopod check"],
    )
}

fn kernel_empty(bed: &Bed) -> Result<()> {
    let path = shortened(bed, &bed.machine.kernel, 0)?;
    names(bed, "kernel", &path, &["truncated", "isopod check"])
}

fn kernel_truncated(bed: &Bed) -> Result<()> {
    let path = shortened(bed, &bed.machine.kernel, 1 << 20)?;
    names(bed, "kernel", &path, &["truncated", "isopod check"])
}

fn kernel_text(bed: &Bed) -> Result<()> {
    let path = bed.dir.join("disk/text");
    fs::write(&path, "This is not a kernel.\n".repeat(1000))?;
    names(
        bed,
        "kernel",
        &path,
        &["is not an uncompressed ELF vmlinux", "isopod check"],
    )
}

fn kernel_directory(bed: &Bed) -> Result<()> {
    names(
        bed,
        "kernel",
        &bed.volume()?,
        &["guest kernel", "isopod check"],
    )
}

fn image_missing(bed: &Bed) -> Result<()> {
    names(
        bed,
        "image",
        &missing(bed),
        &["guest image", "No such file", "isopod check"],
    )
}

fn image_truncated(bed: &Bed) -> Result<()> {
    let path = shortened(bed, &bed.machine.image, 1 << 20)?;
    names(bed, "image", &path, &["truncated", "isopod check"])
}

fn image_random(bed: &Bed) -> Result<()> {
    let mut bytes = vec![0; 1 << 20];
    isopod_guest_probe::fill(&mut bytes, 0);
    let path = bed.dir.join("disk/random");
    fs::write(&path, bytes)?;
    names(
        bed,
        "image",
        &path,
        &["is not an EROFS image", "isopod check"],
    )
}

/// A guest image with this as its agent.
fn image_with(bed: &Bed, agent: Option<&[u8]>) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let (root, image) = (bed.volume()?, bed.dir.join("disk/odd.erofs"));
    for dir in ["sbin", "dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir(root.join(dir))?;
    }
    if let Some(bytes) = agent {
        let path = root.join("sbin/isopod-agent");
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        fs::copy(isopod_tests::image::BUSYBOX, root.join("sbin/busybox"))?;
    }
    let mut command = Command::new("mkfs.erofs");
    command
        .args(["--quiet", "-T0", "--all-root"])
        .arg(&image)
        .arg(&root);
    process::run(&mut command, None, Duration::from_secs(30))?.ok()?;
    Ok(image)
}

fn image_empty(bed: &Bed) -> Result<()> {
    let image = image_with(bed, None)?;
    bed.settings.borrow_mut().path("image", &image);
    create_fails(bed, &["panic", "init"]).map(drop)
}

fn image_dying(bed: &Bed) -> Result<()> {
    let image = image_with(bed, Some(b"#!/sbin/busybox sh\nexit 3\n"))?;
    bed.settings.borrow_mut().path("image", &image);
    create_fails(bed, &["panic", "Attempted to kill init"]).map(drop)
}

fn image_silent(bed: &Bed) -> Result<()> {
    let image = image_with(
        bed,
        Some(b"#!/sbin/busybox sh\nwhile true; do busybox sleep 1; done\n"),
    )?;
    bed.settings
        .borrow_mut()
        .path("image", &image)
        .set("timeouts", "boot", 8);
    let run = create_fails(bed, &["8"])?;
    ensure!(run.took < Duration::from_secs(20), "it took {:?}", run.took);
    Ok(())
}

fn qemu_missing(bed: &Bed) -> Result<()> {
    names(
        bed,
        "qemu",
        &missing(bed),
        &["QEMU", "No such file", "qemu-system-x86"],
    )
}

fn qemu_false(bed: &Bed) -> Result<()> {
    bed.settings
        .borrow_mut()
        .path("qemu", Path::new("/usr/bin/false"));
    let run = create_fails(bed, &["QEMU"])?;
    ensure!(run.took < SOON, "it took {:?}", run.took);
    Ok(())
}

fn file_server_missing(bed: &Bed) -> Result<()> {
    names(
        bed,
        "file_server",
        &missing(bed),
        &["No such file", "isopod check"],
    )
}

fn launcher_missing(bed: &Bed) -> Result<()> {
    names(
        bed,
        "jail",
        &missing(bed),
        &["No such file", "isopod check"],
    )
}

fn unknown_key(bed: &Bed) -> Result<()> {
    bed.settings.borrow_mut().set("vm", "memory_mb", 100);
    create_fails(bed, &["memory_mb", "memory_mib"]).map(drop)
}

fn no_settings(bed: &Bed) -> Result<()> {
    let mut command = bed.ctr();
    command.args([
        "run",
        "--rm",
        "--runtime",
        "io.containerd.isopod.v2",
        "--runtime-config-path",
    ]);
    command
        .arg(missing(bed))
        .args([isopod_tests::bed::IMAGE, "c", "true"]);
    let run = process::run(&mut command, None, Duration::from_secs(60))?.code_is(1)?;
    check_contains!(run.err(), "does-not-exist");
    Ok(())
}

/// Whether or not there is a KVM: without either, the engine that was asked for is not there.
fn monitor_missing(bed: &Bed) -> Result<()> {
    bed.settings.borrow_mut().set("", "engine", quoted("kvm"));
    bed.settings.borrow_mut().path("monitor", &missing(bed));
    let why = create_fails(bed, &[])?.err();
    let named = ["does-not-exist", "engine = \"kvm\""];
    ensure!(
        named.iter().any(|name| why.contains(name)),
        "neither is named: {why}"
    );
    Ok(())
}

fn annotation(bed: &Bed) -> Result<()> {
    let run = bed
        .container()
        .flags(["--annotation", "io.isopod.memory_mib=1024"])
        .run(["true"])?;
    let run = run.code_is(1)?;
    check_contains!(run.err(), "io.isopod.memory_mib");
    Ok(())
}

fn recovers(bed: &Bed) -> Result<()> {
    let good = bed.settings.borrow().clone();
    bed.settings.borrow_mut().path("kernel", &missing(bed));
    for _ in 0..3 {
        create_fails(bed, &["does-not-exist"])?;
    }
    *bed.settings.borrow_mut() = good;
    bed.container().run(["true"])?.ok().map(drop)
}
