//! What a launch looks at before it begins, for `isopod check`: the same code, so that the check and
//! the launch cannot disagree. Messages name the file and the remedy.

use std::path::Path;

use isopod_settings::Settings;

use crate::{engine, host::artifact};

/// The engine that a pod would run on, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineReport {
    /// "qemu" or "kvm".
    pub name: &'static str,
    /// The reason.
    pub why: String,
}

/// Which engine a pod with these settings gets.
pub fn engine(settings: &Settings) -> Result<EngineReport, String> {
    let choice = engine::choose(settings).map_err(|error| error.to_string())?;
    Ok(EngineReport {
        name: choice.engine.name(),
        why: choice.why,
    })
}

/// Whether the file is a whole guest kernel.
pub fn kernel(path: &Path) -> Result<(), String> {
    let found = artifact::open_kernel(path).map_err(|error| error.to_string());
    found.map(drop)
}

/// Whether the file is a whole guest image.
pub fn image(path: &Path) -> Result<(), String> {
    let found = artifact::open_image(path).map_err(|error| error.to_string());
    found.map(drop)
}
