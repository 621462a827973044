//! Names of containers and processes. They become directory names, so nothing else passes.

/// Longest id in bytes. containerd allows 76.
pub const MAX_LEN: usize = 128;

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It has no characters, or more than [`MAX_LEN`].
    #[error("an id has 1 to {MAX_LEN} bytes, this one has {0}")]
    Length(usize),
    /// Only letters, digits, `-`, `_`, `.` and `+` pass.
    #[error("id {0:?} holds a character outside [A-Za-z0-9_.+-]")]
    Character(String),
    /// It could be taken for a directory, an option or a hidden file.
    #[error("id {0:?} does not begin with a letter or a digit")]
    Begin(String),
}

/// Accepts what can safely be one path component: a letter or digit, then letters, digits and `_.+-`.
pub fn check(id: &str) -> Result<(), IdError> {
    if id.is_empty() || id.len() > MAX_LEN {
        return Err(IdError::Length(id.len()));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if !id.chars().all(fits) {
        return Err(IdError::Character(id.to_owned()));
    }
    if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(IdError::Begin(id.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("a")]
    #[case("web-1")]
    #[case("A_b.c+d")]
    #[case("0123456789abcdef")]
    fn a_plain_name_passes(#[case] id: &str) {
        assert_eq!(check(id), Ok(()));
    }

    #[rstest]
    #[case("")]
    #[case(".")]
    #[case("..")]
    #[case("-rf")]
    #[case("a/b")]
    #[case("a\0b")]
    #[case("a b")]
    #[case("ä")]
    #[case("a\n")]
    fn anything_else_is_refused(#[case] id: &str) {
        assert!(check(id).is_err());
    }

    #[test]
    fn the_length_is_bounded() {
        assert_eq!(check(&"x".repeat(MAX_LEN)), Ok(()));
        assert_eq!(
            check(&"x".repeat(MAX_LEN + 1)),
            Err(IdError::Length(MAX_LEN + 1))
        );
    }
}
