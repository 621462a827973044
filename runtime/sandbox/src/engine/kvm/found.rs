//! What this machine's KVM is. The monitor measures it once per boot of the host: it takes a fifth of a
//! second where supervisor mode is interpreted, and the answer does not change.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use isopod_settings::Settings;
use serde::{Deserialize, Serialize};

/// Beside the state directory, which holds pods and nothing else; a reboot removes both.
fn file(settings: &Settings) -> PathBuf {
    settings.paths.state.with_extension("kvm.json")
}

/// What `isopod-vmm probe` prints.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Found {
    /// The host's instruction emulator runs guests' kernels.
    pub emulated_supervisor: bool,
    /// Measured, in supervisor mode.
    pub instructions_per_second: f64,
}

/// Asks the monitor, or remembers. The error names what to do.
pub(crate) fn find(settings: &Settings) -> Result<Found, String> {
    let file = file(settings);
    if let Some(found) = remembered(&file) {
        return Ok(found);
    }
    let monitor = &settings.paths.monitor;
    let output = Command::new(monitor)
        .arg("probe")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", monitor.display()))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(told.trim().to_owned());
    }
    let found = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{} probe: {error}", monitor.display()))?;
    // Whoever cannot write there asks again the next time.
    let _ = serde_json::to_vec(&found).map(|json| fs::write(file, json));
    Ok(found)
}

fn remembered(file: &Path) -> Option<Found> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_monitor_is_named_and_an_answer_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.paths.state = dir.path().join("isopod");
        settings.paths.monitor = "/nonexistent/isopod-vmm".into();
        let error = find(&settings).unwrap_err();
        assert!(error.contains("/nonexistent/isopod-vmm"), "{error}");

        let found = Found {
            emulated_supervisor: true,
            instructions_per_second: 1.75e6,
        };
        let json = serde_json::to_vec(&found).unwrap();
        fs::write(dir.path().join("isopod.kvm.json"), json).unwrap();
        assert_eq!(find(&settings).unwrap(), found);
        fs::write(dir.path().join("isopod.kvm.json"), "half").unwrap();
        assert!(find(&settings).is_err());
    }
}
