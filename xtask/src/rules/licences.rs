//! Our crates are Apache-2.0. What they depend on is checked by `cargo deny` (deny.toml).

use crate::tree::Tree;

pub fn check(tree: &Tree) -> Vec<String> {
    tree.crates
        .iter()
        .filter(|package| package.license.as_deref() != Some("Apache-2.0"))
        .map(|package| format!("{} is not licensed Apache-2.0", package.folder))
        .collect()
}
