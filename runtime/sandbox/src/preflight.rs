//! What a launch looks at before it begins, for `isopod check`: the same code, so that the check and
//! the launch cannot disagree. Messages name the file.

use std::{fs::File, path::Path};

use isopod_settings::Settings;

use crate::{
    engine,
    host::artifact::{self, ArtifactError},
};

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
    without_remedy(artifact::open_kernel(path))
}

/// Whether the file is a whole guest image.
pub fn image(path: &Path) -> Result<(), String> {
    without_remedy(artifact::open_image(path))
}

/// `isopod check` is what the message would point to.
fn without_remedy(found: Result<File, ArtifactError>) -> Result<(), String> {
    let text = |error: ArtifactError| {
        let text = error.to_string();
        let end = format!("; {}", artifact::REMEDY);
        text.strip_suffix(&end).map(str::to_owned).unwrap_or(text)
    };
    found.map(drop).map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_file_and_do_not_point_to_the_reader() {
        let error = kernel(Path::new("/nonexistent/vmlinux")).unwrap_err();
        assert!(error.contains("/nonexistent/vmlinux"), "{error}");
        assert!(!error.contains("isopod check"), "{error}");
    }
}
