//! System calls that no safe wrapper has: all `unsafe` of this crate.
#![allow(unsafe_code)]

pub(crate) mod bpf;
pub(crate) mod descriptors;
pub(crate) mod fork;
pub(crate) mod mount_attr;
pub(crate) mod schedule;
pub(crate) mod seccomp;

/// An error as runc shows it: Go's words for an errno, not Rust's ("(os error 2)" is noise to users).
pub(crate) fn errno_words(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => {
            let words = nix::errno::Errno::from_raw(number).desc();
            let mut letters = words.chars();
            match letters.next() {
                // "Input/output error" -> "input/output error", but "RFS specific error" stays.
                Some(first) if letters.clone().next().is_some_and(char::is_lowercase) => {
                    first.to_lowercase().chain(letters).collect()
                }
                _ => words.to_owned(),
            }
        }
        None => error.to_string(),
    }
}
