//! `unsafe` lives in few places. Every other crate forbids it at its root, so that the compiler holds
//! the rule; within the crates that may use it, only the named paths do.

use crate::tree::Tree;

/// Crate folder -> where in it `unsafe` may stand ("" is everywhere).
const MAY: &[(&str, &str)] = &[
    ("vmm/memory", ""),
    ("vmm/hypervisor", ""),
    ("vmm/jail", ""),
    ("agent/container", "src/sys"),
    ("agent/agent", "src/sys.rs"),
];

pub fn check(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for package in &tree.crates {
        let prefix = format!("{}/", package.folder);
        match MAY.iter().find(|(folder, _)| *folder == package.folder) {
            None => {
                for root in &package.roots {
                    let file = tree.files.iter().find(|file| file.path == *root);
                    if !file.is_some_and(|file| file.text.contains("#![forbid(unsafe_code)]")) {
                        faults.push(format!("{root} lacks #![forbid(unsafe_code)]"));
                    }
                }
            }
            Some((_, "")) => {}
            Some((_, place)) => {
                let allowed = format!("{prefix}{place}");
                for file in tree
                    .files
                    .iter()
                    .filter(|file| file.path.starts_with(&prefix))
                {
                    if !file.path.starts_with(&allowed) && has_unsafe(&file.text) {
                        faults.push(format!("{} uses unsafe; only {allowed} may", file.path));
                    }
                }
            }
        }
    }
    faults
}

/// Whether code (not a comment or a lint's name) has the keyword.
fn has_unsafe(text: &str) -> bool {
    text.lines().any(|line| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
            .iter()
            .any(|form| code.contains(form))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Crate, SourceFile};

    fn tree(folder: &str, file: &str, text: &str) -> Tree {
        let path = format!("{folder}/{file}");
        Tree {
            files: vec![SourceFile {
                path: path.clone(),
                text: text.into(),
            }],
            crates: vec![Crate {
                name: String::new(),
                folder: folder.into(),
                license: None,
                roots: vec![path],
                imports: Default::default(),
            }],
            ..Tree::default()
        }
    }

    #[test]
    fn a_root_must_forbid_it() {
        assert_eq!(
            check(&tree("runtime/shim", "src/main.rs", "fn main() {}")).len(),
            1
        );
        assert!(
            check(&tree(
                "runtime/shim",
                "src/main.rs",
                "#![forbid(unsafe_code)]"
            ))
            .is_empty()
        );
    }

    #[test]
    fn a_licensed_crate_keeps_to_its_place() {
        let code = "fn f() { unsafe { g() } }";
        assert!(check(&tree("agent/container", "src/sys/pty.rs", code)).is_empty());
        assert_eq!(
            check(&tree("agent/container", "src/create.rs", code)).len(),
            1
        );
        assert!(check(&tree("vmm/jail", "src/anything.rs", code)).is_empty());
    }

    #[test]
    fn comments_do_not_count() {
        assert!(!has_unsafe("// an unsafe { block } would do"));
    }
}
