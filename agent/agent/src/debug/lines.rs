//! Lines out of bytes that never end: of a line that is too long nothing is kept but that it was.

use isopod_protocol::debug::LINE_LEN;

/// The line that is coming.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    too_long: bool,
}

impl Lines {
    /// Takes bytes up to the end of a line, and that line with them; `None` when they hold no end. An `Err`
    /// is a line of more than [`LINE_LEN`].
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Result<Vec<u8>, ()>> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end.saturating_add(1));
        let (now, rest) = bytes.split_at_checked(taken)?;
        *bytes = rest;
        if self.too_long || self.line.len().saturating_add(now.len()) > LINE_LEN {
            self.too_long = true;
            self.line.clear();
        } else {
            self.line.extend_from_slice(now);
        }
        end?;
        let Self { line, too_long } = std::mem::take(self);
        Some(if too_long { Err(()) } else { Ok(line) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(lines: &mut Lines, mut bytes: &[u8]) -> Vec<Result<Vec<u8>, ()>> {
        std::iter::from_fn(|| lines.next(&mut bytes)).collect()
    }

    #[test]
    fn lines_come_in_pieces() {
        let mut lines = Lines::default();
        assert_eq!(all(&mut lines, b"mem"), []);
        let expected = [Ok(b"memory\n".to_vec()), Ok(b"\n".to_vec())];
        assert_eq!(all(&mut lines, b"ory\n\nhe"), expected);
        assert_eq!(all(&mut lines, b"lp\n"), [Ok(b"help\n".to_vec())]);
    }

    #[test]
    fn of_a_line_without_an_end_nothing_is_kept() {
        let mut lines = Lines::default();
        for _ in 0..1000 {
            assert_eq!(all(&mut lines, &[b'x'; 4096]), []);
            assert!(lines.line.len() <= LINE_LEN);
        }
        let expected = [Err(()), Ok(b"help\n".to_vec())];
        assert_eq!(all(&mut lines, b"\nhelp\n"), expected);
    }

    #[test]
    fn the_longest_line_is_a_line() {
        let mut lines = Lines::default();
        let mut longest = vec![b'x'; LINE_LEN - 1];
        longest.push(b'\n');
        assert_eq!(all(&mut lines, &longest), [Ok(longest.clone())]);
        longest.insert(0, b'x');
        assert_eq!(all(&mut lines, &longest), [Err(())]);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(parts in proptest::collection::vec("[a\n]{0,5}", 0..20)) {
            let (mut whole, mut pieces) = (Lines::default(), Lines::default());
            let mut found = Vec::new();
            for part in &parts {
                found.extend(all(&mut pieces, part.as_bytes()));
            }
            prop_assert_eq!(found, all(&mut whole, parts.concat().as_bytes()));
        }
    }
}
