//! A file holds one idea: 100 to 300 lines typically, above 400 think, above 600 refused.

use crate::tree::Tree;

/// Lines in one file at most.
const REFUSED: usize = 600;
/// Lines of tests within a file at most; longer ones live in a sibling file.
const TESTS: usize = 150;

pub fn check(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in &tree.files {
        let lines = file.text.lines().count();
        if lines > REFUSED {
            faults.push(format!(
                "{} has {lines} lines, more than {REFUSED}",
                file.path
            ));
        }
        let tests = inline_tests(&file.text);
        if tests > TESTS {
            faults.push(format!(
                "{} ends in {tests} lines of tests, more than {TESTS}: move them to a sibling file",
                file.path
            ));
        }
    }
    faults
}

/// Lines from `mod tests {` to the end of the file.
fn inline_tests(text: &str) -> usize {
    let from = text.lines().position(|line| line == "mod tests {");
    from.map_or(0, |from| text.lines().count() - from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::SourceFile;

    fn faults(text: String) -> usize {
        check(&Tree {
            files: vec![SourceFile {
                path: "a.rs".into(),
                text,
            }],
            ..Tree::default()
        })
        .len()
    }

    #[test]
    fn long_files_are_refused() {
        assert_eq!(faults("x\n".repeat(600)), 0);
        assert_eq!(faults("x\n".repeat(601)), 1);
    }

    #[test]
    fn long_inline_tests_are_refused() {
        assert_eq!(faults(format!("mod tests {{\n{}", "x\n".repeat(149))), 0);
        assert_eq!(faults(format!("mod tests {{\n{}", "x\n".repeat(150))), 1);
    }
}
