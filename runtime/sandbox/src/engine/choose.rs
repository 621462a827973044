//! Which engine runs a pod, and why: told in the log, by `check`, and in the launch report.

use isopod_settings::{EngineChoice, Settings};

use super::{
    Engine, EngineError,
    kvm::{Found, Kvm, find},
    qemu::Qemu,
};

/// An engine and the reason for it.
pub(crate) struct Choice {
    pub engine: Box<dyn Engine>,
    pub why: String,
}

/// Takes the configured engine; `auto` takes the first that can work well here.
pub(crate) fn choose(settings: &Settings) -> Result<Choice, EngineError> {
    match settings.engine {
        EngineChoice::Qemu => Ok(qemu("the configuration says so".to_owned())),
        EngineChoice::Kvm => match find(settings) {
            Ok(found) => Ok(kvm(found, "the configuration says so")),
            Err(error) => Err(EngineError::Unavailable {
                name: "kvm",
                why: format!("{error}; set engine = \"qemu\" or \"auto\""),
            }),
        },
        EngineChoice::Auto => Ok(automatic(find(settings))),
    }
}

fn automatic(found: Result<Found, String>) -> Choice {
    match found {
        Ok(found) if !found.emulated_supervisor => kvm(found, "auto: this processor virtualizes"),
        Ok(found) => qemu(format!(
            "auto: this machine's KVM interprets guests' kernels, {:.1} million instructions a second",
            found.instructions_per_second / 1e6
        )),
        Err(error) => qemu(format!("auto: no kvm: {error}")),
    }
}

fn qemu(why: String) -> Choice {
    Choice {
        engine: Box::new(Qemu),
        why,
    }
}

fn kvm(found: Found, why: &str) -> Choice {
    let slow = if found.emulated_supervisor {
        format!(
            " (slow: this machine's KVM interprets guests' kernels, {:.1} million instructions a second)",
            found.instructions_per_second / 1e6
        )
    } else {
        String::new()
    };
    Choice {
        engine: Box::new(Kvm { found }),
        why: format!("{why}{slow}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(engine: EngineChoice) -> Result<(&'static str, String), String> {
        let mut settings = Settings {
            engine,
            ..Settings::default()
        };
        settings.paths.state = "/nonexistent".into();
        settings.paths.monitor = "/nonexistent/isopod-vmm".into();
        let choice = choose(&settings).map_err(|error| error.to_string())?;
        Ok((choice.engine.name(), choice.why))
    }

    #[test]
    fn auto_takes_kvm_where_the_processor_virtualizes() {
        for (emulated_supervisor, expected) in [(false, "kvm"), (true, "qemu")] {
            let choice = automatic(Ok(Found {
                emulated_supervisor,
                instructions_per_second: 1.75e6,
            }));
            assert_eq!(choice.engine.name(), expected);
            assert!(choice.why.starts_with("auto: "), "{}", choice.why);
        }
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
