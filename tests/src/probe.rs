//! The probe: a static program that exercises what a shell cannot, in a container of either runtime.

use std::{fs, path::PathBuf, process::Command, sync::OnceLock, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{Machine, process};

/// Where it is in the image.
pub const PATH: &str = "/bin/isopod-probe";

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Its bytes: from `ISOPOD_PROBE`, or built now, in a target directory of its own because the flag for a
/// static program would rebuild everything else.
pub fn build(machine: &Machine) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| compile(machine).map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn compile(machine: &Machine) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ISOPOD_PROBE") {
        return Ok(path.into());
    }
    let target = machine.target_dir.join("probe");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--package",
            "isopod-guest-probe",
        ])
        .args(["--target", TRIPLE, "--target-dir"])
        .arg(&target)
        .current_dir(crate::machine::workspace())
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    let finished = process::run(&mut command, None, Duration::from_secs(600))?;
    if finished.code != 0 {
        bail!("build the probe: {}", finished.err());
    }
    Ok(target.join(TRIPLE).join("release/isopod-guest-probe"))
}

/// Reads it for an image.
pub fn bytes(path: &std::path::Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
