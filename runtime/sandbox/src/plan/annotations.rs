//! A pod's annotations. Nothing is honoured that the operator does not allow.

use std::collections::HashMap;

use isopod_settings::{ANNOTATION_PREFIX, Annotation, Settings};

use super::PlanError;

/// What annotations changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub memory_mib: Option<u64>,
    pub cpus: Option<u32>,
}

/// Reads isopod's annotations; others are not ours.
pub(crate) fn wishes(
    annotations: Option<&HashMap<String, String>>,
    settings: &Settings,
) -> Result<Wishes, PlanError> {
    let mut wishes = Wishes::default();
    let ours = annotations
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX));
    for (key, value) in ours {
        let field = format!("annotations[{key}]");
        let Some(known) = Annotation::from_key(key) else {
            return Err(PlanError::invalid(field, "no such annotation"));
        };
        if !settings.annotations.allowed.contains(&known) {
            return Err(PlanError::invalid(
                field,
                "not allowed on this node (annotations.allowed in isopod's configuration)",
            ));
        }
        let bounded = |low: u64, high: u64| match value.parse::<u64>() {
            Ok(number) if (low..=high).contains(&number) => Ok(number),
            _ => Err(PlanError::invalid(
                field.clone(),
                format!("{value:?} is not a number from {low} to {high}"),
            )),
        };
        match known {
            Annotation::MemoryMib => {
                wishes.memory_mib = Some(bounded(64, settings.vm.max_memory_mib)?);
            }
            Annotation::Cpus => {
                let cpus = bounded(1, settings.vm.max_cpus.into())?;
                wishes.cpus = u32::try_from(cpus).ok();
            }
        }
    }
    Ok(wishes)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn read(key: &str, value: &str, allowed: &[Annotation]) -> Result<Wishes, String> {
        let mut settings = Settings::default();
        settings.annotations.allowed = allowed.to_vec();
        let annotations = HashMap::from([(key.to_owned(), value.to_owned())]);
        wishes(Some(&annotations), &settings).map_err(|error| error.to_string())
    }

    #[test]
    fn others_annotations_are_not_ours() {
        assert_eq!(read("io.kubernetes.x", "y", &[]), Ok(Wishes::default()));
    }

    #[test]
    fn allowed_ones_count() {
        let found = read("io.isopod.cpus", "3", &[Annotation::Cpus]).unwrap();
        assert_eq!(found.cpus, Some(3));
        let found = read("io.isopod.memory_mib", "700", &[Annotation::MemoryMib]).unwrap();
        assert_eq!(found.memory_mib, Some(700));
    }

    #[rstest]
    #[case("io.isopod.cpus", "2", &[], "not allowed")]
    #[case("io.isopod.cpus", "2", &[Annotation::MemoryMib], "not allowed")]
    #[case("io.isopod.kernel", "/tmp/evil", &Annotation::ALL, "no such annotation")]
    #[case("io.isopod.cpus", "0", &Annotation::ALL, "not a number from 1 to 16")]
    #[case("io.isopod.cpus", "17", &Annotation::ALL, "not a number from 1 to 16")]
    #[case("io.isopod.memory_mib", "1e3", &Annotation::ALL, "not a number from 64 to 65536")]
    fn others_are_refused(
        #[case] key: &str,
        #[case] value: &str,
        #[case] allowed: &[Annotation],
        #[case] why: &str,
    ) {
        let error = read(key, value, allowed).unwrap_err();
        assert!(error.contains(why) && error.contains(key), "{error}");
    }
}
