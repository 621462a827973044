//! The debug console: a person on the host asks, the agent tells what it sees.
//!
//! ```text
//!   host    a line of words, "\n"
//!   guest   DONE or FAILED, text, END       for each line
//! ```
//!
//! On vsock each conversation has a connection of its own. The port of the virtio console is one for all:
//! who comes does not know what the last one left half asked and unread. He begins with
//!
//! ```text
//!   host    "\n", MARK, a token that nobody can know, "\n"
//!   guest   whatever was on its way, END, MARK, the token, END
//! ```
//!
//! Nothing that can be asked changes anything in the guest. The text is the guest's: who shows it to a
//! terminal must take control characters out.

/// The first byte of an answer: what was asked for.
pub const DONE: u8 = b'+';
/// The first byte of an answer: why not.
pub const FAILED: u8 = b'-';
/// The first byte of a line that is to be sent back, and of the answer to it.
pub const MARK: u8 = b'=';
/// Behind an answer; not in it.
pub const END: u8 = 0;
/// Bytes of a line, its end included.
pub const LINE_LEN: usize = 4096;
/// Bytes of an answer's text: the kernel's log is the longest that one asks for.
pub const ANSWER_LEN: usize = 1 << 20;
/// What the console's port is called in the guest (`/sys/class/virtio-ports/*/name`), where the pod's machine
/// has one: the monitor's device gives it this name (`vmm/devices/src/console/control.rs`).
pub const PORT: &str = "isopod.debug";
