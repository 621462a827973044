//! Which engine runs a pod, and why: told in the log, by `check`, and in the launch report.

use isopod_settings::{EngineChoice, Settings};

use super::{Engine, EngineError, qemu::Qemu};

/// An engine and the reason for it.
pub(crate) struct Choice {
    pub engine: Box<dyn Engine>,
    pub why: String,
}

/// Takes the configured engine; `auto` takes the first that can work here.
pub(crate) fn choose(settings: &Settings) -> Result<Choice, EngineError> {
    let qemu = |why: &str| Choice {
        engine: Box::new(Qemu),
        why: why.to_owned(),
    };
    match settings.engine {
        EngineChoice::Qemu => Ok(qemu("the configuration says so")),
        EngineChoice::Kvm => Err(EngineError::Unavailable {
            name: "kvm",
            why: "this build has no machine monitor of its own yet; set engine = \"qemu\" or \"auto\"",
        }),
        // The kvm engine comes first here once it is built, where the CPU virtualizes.
        EngineChoice::Auto => Ok(qemu(
            "auto: this build has no machine monitor of its own yet",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(engine: EngineChoice) -> Result<(&'static str, String), String> {
        let settings = Settings {
            engine,
            ..Settings::default()
        };
        let choice = choose(&settings).map_err(|error| error.to_string())?;
        Ok((choice.engine.name(), choice.why))
    }

    #[test]
    fn every_choice_is_explained() {
        let (name, why) = chosen(EngineChoice::Auto).unwrap();
        assert_eq!(name, "qemu");
        assert!(why.starts_with("auto: "), "{why}");
        let (name, why) = chosen(EngineChoice::Qemu).unwrap();
        assert_eq!((name, why.as_str()), ("qemu", "the configuration says so"));
    }

    #[test]
    fn kvm_is_refused_with_what_to_do() {
        let error = chosen(EngineChoice::Kvm).unwrap_err();
        assert!(error.contains("engine = \"qemu\""), "{error}");
    }
}
