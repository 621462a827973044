//! The debug console: a person on the host asks, the agent tells what it sees.
//!
//! ```text
//!   host    a line of words, "\n"
//!   guest   DONE or FAILED, text, END       for each line
//! ```
//!
//! Nothing that can be asked changes anything in the guest. The text is the guest's: who shows it to a
//! terminal must take control characters out.

/// The first byte of an answer: what was asked for.
pub const DONE: u8 = b'+';
/// The first byte of an answer: why not.
pub const FAILED: u8 = b'-';
/// Behind an answer; not in it.
pub const END: u8 = 0;
/// Bytes of a line, its end included.
pub const LINE_LEN: usize = 4096;
/// Bytes of an answer's text: the kernel's log is the longest that one asks for.
pub const ANSWER_LEN: usize = 1 << 20;
