//! Names say what a thing is: a crate is called after its folder, no file is called after nothing, and
//! every crate opens with its job.

use crate::tree::Tree;

/// Words that name no idea.
const EMPTY: &[&str] = &[
    "manager", "helper", "helpers", "util", "utils", "common", "inner", "misc",
];

pub fn check(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for package in &tree.crates {
        let last = package.folder.rsplit('/').next().unwrap_or_default();
        if package.name != format!("isopod-{last}") {
            faults.push(format!(
                "{} is named {}, not isopod-{last}",
                package.folder, package.name
            ));
        }
        for root in &package.roots {
            let file = tree.files.iter().find(|file| file.path == *root);
            if !file.is_some_and(|file| file.text.starts_with("//! ")) {
                faults.push(format!("{root} does not open with its job (`//! ...`)"));
            }
        }
    }
    for file in &tree.files {
        let parts = file.path.trim_end_matches(".rs").split(['/', '_']);
        if let Some(word) = parts.into_iter().find(|part| EMPTY.contains(part)) {
            faults.push(format!("{}: `{word}` names no idea", file.path));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::SourceFile;

    #[test]
    fn empty_words_are_refused() {
        let tree = |path: &str| Tree {
            files: vec![SourceFile {
                path: path.into(),
                text: String::new(),
            }],
            ..Tree::default()
        };
        assert_eq!(check(&tree("runtime/shim/src/task_manager.rs")).len(), 1);
        assert_eq!(check(&tree("runtime/utils/src/lib.rs")).len(), 1);
        assert!(check(&tree("runtime/shim/src/task.rs")).is_empty());
    }
}
