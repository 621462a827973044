//! The end of a guest's output, for whoever wants to know why it died.

use std::collections::VecDeque;

/// Keeps the last lines, whole ones, up to a number of bytes.
#[derive(Debug)]
pub struct Tail {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Tail {
    /// Keeps `limit` bytes at most. Nothing is allocated before there is output.
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            limit,
        }
    }

    /// More output.
    pub fn push(&mut self, output: &[u8]) {
        // Of what is longer than the whole, only the end can stay.
        let surplus = output.len().saturating_sub(self.limit);
        let output = output.get(surplus..).unwrap_or_default();
        self.bytes.extend(output);
        let surplus = self.bytes.len().saturating_sub(self.limit);
        if surplus == 0 {
            return;
        }
        // Up to the end of the line that is cut, unless the rest is one line.
        let rest = self.bytes.iter().skip(surplus);
        let line = rest.take_while(|byte| **byte != b'\n').count() + 1;
        let cut = match surplus + line {
            cut if cut < self.bytes.len() => cut,
            _ => surplus,
        };
        self.bytes.drain(..cut);
    }

    /// What is kept; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        let (front, back) = self.bytes.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_whole_lines_are_kept() {
        let mut tail = Tail::new(16);
        for line in ["first\n", "second\n", "third\n"] {
            tail.push(line.as_bytes());
        }
        assert_eq!(tail.text(), "second\nthird\n");
    }

    #[test]
    fn of_a_line_that_is_too_long_the_end_is_kept() {
        let mut tail = Tail::new(4);
        tail.push(b"abcdefgh");
        assert_eq!(tail.text(), "efgh");
        tail.push(b"\xff\n");
        assert_eq!(tail.text(), "gh\u{fffd}\n");
    }

    proptest! {
        #[test]
        fn it_never_grows_and_is_always_an_end(
            limit in 0usize..40,
            parts in proptest::collection::vec("[a-z\n]{0,20}", 0..20),
        ) {
            let mut tail = Tail::new(limit);
            for part in &parts {
                tail.push(part.as_bytes());
            }
            let text = tail.text();
            prop_assert!(text.len() <= limit);
            prop_assert!(parts.concat().ends_with(&text));
        }
    }
}
