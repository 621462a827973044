//! Debian's virtiofsd in the place of isopod-fs: the sandbox starts this program as its file server; it
//! gives the virtio-fs socket to virtiofsd and leaves the vsock to isopod-fs.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use isopod_tests::{Bed, machine::VIRTIOFSD};
use serde_json::Value;

/// The argument that makes this program the file server.
pub const ROLE: &str = "as-file-server";

/// A program for the settings: they have no arguments, so it is a script.
pub fn program(bed: &Bed) -> Result<PathBuf> {
    let path = bed.dir.join("virtiofsd-as-file-server");
    let this = std::env::current_exe()?;
    let real = bed.machine.bin_dir.join("isopod-fs");
    let script = format!(
        "#!/bin/sh\nISOPOD_FS='{}' exec '{}' {ROLE}\n",
        real.display(),
        this.display()
    );
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// The file server's process.
pub fn serve() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut config: Value = serde_json::from_str(&text).context("the configuration")?;
    let (listener, dir) = (config["fs_listener"].clone(), config["shared_dir"].clone());
    let dir = dir.as_str().context("shared_dir")?.to_owned();
    // Inherited: the sandbox passed it without close-on-exec.
    let mut virtiofsd = Command::new(VIRTIOFSD)
        .arg(format!("--fd={listener}"))
        .args([
            "-o",
            &format!("source={dir}"),
            "-o",
            "xattr,flock,posix_lock,cache=auto",
        ])
        .stdin(Stdio::null())
        .spawn()
        .context("start virtiofsd")?;
    // isopod-fs keeps the vsock; nobody will connect to this listener of its virtio-fs.
    let unused = format!("{dir}.unused-{}", std::process::id());
    let spare = std::os::unix::net::UnixListener::bind(&unused)?;
    fs::remove_file(&unused)?;
    let spare = rustix::io::dup(&spare)?;
    config["fs_listener"] = std::os::fd::AsRawFd::as_raw_fd(&spare).into();
    let program = std::env::var("ISOPOD_FS").context("ISOPOD_FS")?;
    let mut vsock = Command::new(program)
        .stdin(Stdio::piped())
        .spawn()
        .context("start isopod-fs")?;
    let mut pipe = vsock.stdin.take().context("a pipe")?;
    std::io::Write::write_all(&mut pipe, &serde_json::to_vec(&config)?)?;
    drop(pipe);
    vsock.wait()?;
    virtiofsd.kill()?;
    virtiofsd.wait()?;
    Ok(())
}
