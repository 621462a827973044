//! Our crates are Apache-2.0; what they are built from is under a licence that `deny.toml` allows.
//! `cargo deny` checks more where it is installed; this needs nothing.

use spdx::Expression;

use crate::tree::Tree;

pub fn check(tree: &Tree) -> Vec<String> {
    let ours = tree
        .crates
        .iter()
        .filter(|package| package.license.as_deref() != Some("Apache-2.0"))
        .map(|package| format!("{} is not licensed Apache-2.0", package.folder));
    let theirs = tree.dependencies.iter().filter_map(|(name, license)| {
        let Some(license) = license else {
            return Some(format!("{name} names no licence"));
        };
        match Expression::parse_mode(license, spdx::ParseMode::LAX) {
            Err(_) => Some(format!(
                "{name} has a licence that SPDX does not know: {license}"
            )),
            Ok(expression) => {
                let allowed = expression
                    .evaluate(|licence| tree.allowed_licences.contains(&licence.to_string()));
                (!allowed)
                    .then(|| format!("{name} is under {license}, which deny.toml does not allow"))
            }
        }
    });
    ours.chain(theirs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(license: Option<&str>) -> usize {
        check(&Tree {
            dependencies: vec![("some 1.0".into(), license.map(str::to_owned))],
            allowed_licences: vec!["MIT".into(), "Apache-2.0 WITH LLVM-exception".into()],
            ..Tree::default()
        })
        .len()
    }

    #[test]
    fn one_allowed_alternative_suffices() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0-only",
            "GPL-3.0-only/MIT",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(faults(Some(good)), 0, "{good}");
        }
    }

    #[test]
    fn the_rest_is_refused() {
        for bad in [
            Some("GPL-3.0-only"),
            Some("MIT AND GPL-3.0-only"),
            Some("a licence of my own"),
            None,
        ] {
            assert_eq!(faults(bad), 1, "{bad:?}");
        }
    }
}
