//! The house rules. Each is a pure function from the tree to what breaks it.

mod layers;
mod licences;
mod names;
mod size;
mod unsafe_code;

use anyhow::Result;

use crate::tree::Tree;

type Rule = fn(&Tree) -> Vec<String>;

const RULES: &[(&str, Rule)] = &[
    ("layering", layers::check),
    ("unsafe", unsafe_code::check),
    ("file size", size::check),
    ("names", names::check),
    ("licences", licences::check),
];

/// Prints what breaks a rule; true when nothing does.
pub fn check(tree: &Tree) -> Result<bool> {
    let mut clean = true;
    for (name, rule) in RULES {
        for fault in rule(tree) {
            eprintln!("{name}: {fault}");
            clean = false;
        }
    }
    if clean {
        println!(
            "house rules: {} crates, {} files, all hold",
            tree.crates.len(),
            tree.files.len()
        );
    }
    Ok(clean)
}
