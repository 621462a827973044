//! The last lines of a byte stream that a guest or a process writes: bounded in number and length,
//! because who writes them is not trusted.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Lines kept.
const LINES: usize = 64;
/// Bytes of a line kept; the rest of it is dropped.
const LINE_LEN: usize = 256;
/// Lines of a reason: a kernel's fault with its registers and its call trace.
const TOLD: usize = 40;
/// Lines told before a panic: PID 1 says why it ends, and then the kernel panics because it did.
const BEFORE: usize = 2;

/// A handle to the lines; clones show the same.
#[derive(Clone, Default)]
pub(crate) struct Console {
    ring: Arc<Mutex<Ring>>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<String>,
    /// The line that has not ended.
    open: String,
}

impl Console {
    /// Reads until the end of the stream.
    pub async fn follow(self, mut stream: impl AsyncRead + Unpin) {
        let mut bytes = [0; 512];
        while let Ok(read @ 1..) = stream.read(&mut bytes).await {
            self.append(bytes.get(..read).unwrap_or_default());
        }
    }

    fn append(&self, bytes: &[u8]) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut ring.open);
                    if !line.is_empty() {
                        ring.lines.push_back(line);
                    }
                    if ring.lines.len() > LINES {
                        ring.lines.pop_front();
                    }
                }
                b'\r' => {}
                _ if ring.open.len() >= LINE_LEN => {}
                b' '..=b'~' => ring.open.push(char::from(*byte)),
                b'\t' => ring.open.push(' '),
                // Terminal escapes of a guest have no place in a log.
                _ => ring.open.push('?'),
            }
        }
    }

    /// The lines that tell most about an end: from shortly before the first that speaks of a fault or a
    /// panic, else the last.
    pub fn last_words(&self) -> Vec<String> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let open = Some(&ring.open).filter(|line| !line.is_empty());
        let lines: Vec<&String> = ring.lines.iter().chain(open).collect();
        let trouble = |line: &&String| speaks_of_panic(line) || speaks_of_fault(line);
        let first = match lines.iter().position(trouble) {
            Some(trouble) => trouble.saturating_sub(BEFORE),
            None => lines.len().saturating_sub(TOLD),
        };
        lines.into_iter().skip(first).take(TOLD).cloned().collect()
    }

    /// Whether a panic was spoken of.
    pub fn panicked(&self) -> bool {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = ring.lines.iter().chain([&ring.open]);
        lines.any(|line| speaks_of_panic(line))
    }

    /// `what`, followed by the last lines, if there are any.
    pub fn explain(&self, what: &str) -> String {
        let lines = self.last_words();
        if lines.is_empty() {
            return what.to_owned();
        }
        format!("{what}; last console lines:\n{}", lines.join("\n"))
    }
}

/// The kernel's words, and those of a Rust program. (Its command line speaks of `panic=`.)
fn speaks_of_panic(line: &str) -> bool {
    line.contains("Kernel panic") || line.contains("panicked at")
}

/// How the kernel begins to tell of a fault of its own, which may lead to a panic.
fn speaks_of_fault(line: &str) -> bool {
    ["BUG: ", "Oops: ", "cut here ]"]
        .iter()
        .any(|words| line.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &[u8]) -> Console {
        let console = Console::default();
        console.append(text);
        console
    }

    #[test]
    fn the_last_lines_are_told() {
        let text: String = (0..100).map(|line| format!("line {line}\r\n")).collect();
        let words = console(text.as_bytes()).last_words();
        assert_eq!(words.first().unwrap(), "line 60");
        assert_eq!(words.last().unwrap(), "line 99");
    }

    #[test]
    fn a_panic_is_told_with_what_led_to_it() {
        let mut text = b"Command line: panic=-1\nnoise\nmore noise\nagent: cannot serve: x\n\
            Kernel panic - not syncing: Attempted to kill init!\n"
            .to_vec();
        text.extend((0..60).flat_map(|line| format!("trace {line}\n").into_bytes()));
        let console = console(&text);
        assert!(console.panicked());
        let words = console.last_words();
        assert_eq!(
            words.get(..3).unwrap(),
            [
                "more noise",
                "agent: cannot serve: x",
                "Kernel panic - not syncing: Attempted to kill init!"
            ]
        );
        assert_eq!(words.len(), TOLD);
    }

    #[test]
    fn a_panic_that_a_fault_led_to_is_told_from_the_fault_on() {
        let mut text = b"noise\n".repeat(50);
        text.extend_from_slice(b"BUG: unable to handle page fault for address: ffff888001e26000\n");
        text.extend((0..10).flat_map(|line| format!("trace {line}\n").into_bytes()));
        let fault = console(&text);
        assert!(!fault.panicked(), "it went on");
        text.extend_from_slice(b"Kernel panic - not syncing: Fatal exception in interrupt\n");
        let words = console(&text).last_words();
        assert!(words.get(2).unwrap().starts_with("BUG: "), "{words:?}");
        assert!(
            words.last().unwrap().starts_with("Kernel panic"),
            "{words:?}"
        );
        assert!(console(&text).panicked());
    }

    #[test]
    fn what_is_kept_is_bounded_and_plain() {
        let console = console(&[b'a'; 100_000]);
        assert_eq!(console.last_words(), ["a".repeat(LINE_LEN)]);
        console.append(b"\n\x1b[31m\xff");
        assert_eq!(console.last_words().last().unwrap(), "?[31m?");
        for _ in 0..1000 {
            console.append(b"x\n");
        }
        assert_eq!(console.ring.lock().unwrap().lines.len(), LINES);
    }
}
