//! Telling which system call a filter forbade.
//!
//! A filter that kills tells nobody what for. So what a filter does not allow is answered by SIGSYS to
//! the thread that made the call (the call itself is not carried out):
//!
//! ```text
//!   forbidden call ──SIGSYS──> handler: one line to standard error ──> a call that no table can name
//!        │ (no handler, or already in it)                                │
//!        └──────────────── the kernel ends the process by SIGSYS <───────┘
//! ```
//!
//! SIGSYS from a filter is forced: where it is blocked or has no handler, the kernel ends the process,
//! PID 1 of a namespace too. Whoever has taken over the process could keep the handler from ending it,
//! and has won nothing: the call was not carried out, nor will the next one be.

use std::{
    cell::Cell,
    fmt::{self, Write},
    io,
    os::raw::{c_int, c_void},
    sync::OnceLock,
};

use crate::Error;

/// What each line begins with.
static PREFIX: OnceLock<String> = OnceLock::new();

thread_local! {
    /// The filter that this thread installed last. Constant and without a destructor: a signal handler
    /// can read it.
    static FILTER: Cell<&'static str> = const { Cell::new("") };
}

/// From now on the process says, on standard error and beginning with `prefix`, which system call it is
/// ended for.
///
/// # Errors
/// sigaction(2) failed.
pub fn report(prefix: String) -> Result<(), Error> {
    // Only the first prefix counts; there is one process and one name.
    let _ = PREFIX.set(prefix);
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_violation;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
    // SAFETY: `action` is initialized and lives through the call; the handler keeps to what may be done
    // in one (see there).
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    match result {
        0 => Ok(()),
        _ => Err(Error::ReportViolations(io::Error::last_os_error())),
    }
}

/// Notes the calling thread's filter.
pub(crate) fn note(filter: &'static str) {
    FILTER.set(filter);
}

/// The part of siginfo_t that SIGSYS fills in (kernel, include/uapi/asm-generic/siginfo.h).
#[repr(C)]
struct SigSys {
    signo: c_int,
    errno: c_int,
    code: c_int,
    _padding: c_int,
    address: *mut c_void,
    call: c_int,
    architecture: u32,
}

const _: () = assert!(size_of::<SigSys>() <= size_of::<libc::siginfo_t>());

/// Of a filter (`SYS_SECCOMP`), not of kill(2).
const BY_FILTER: c_int = 1;

/// Beyond the tables of every architecture: no kernel knows it and no filter names it.
const NO_CALL: libc::c_long = 0x0fff_ffff;

/// What a signal handler may do and no more: memory on its own stack, constants, write(2).
extern "C" fn on_violation(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a siginfo_t that lives as long as it runs, and
    // for SIGSYS fills in these fields; all of them are integers.
    let told = unsafe { &*info.cast::<SigSys>() };
    if told.code == BY_FILTER {
        let mut line = Line::default();
        let _ = describe(&mut line, told.call, arguments(context));
        let line = line.bytes();
        // SAFETY: `line` is initialized memory of that length.
        unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    }
    // SAFETY: there is no such call. The filter's answer is another SIGSYS, which has no handler any
    // more; without a filter the call fails and the process exits as if it had been killed.
    unsafe {
        libc::syscall(NO_CALL);
        libc::_exit(128 + libc::SIGSYS);
    }
}

/// The first three arguments of the call, of which a table sees the lower half.
fn arguments(context: *mut c_void) -> [u32; 3] {
    // SAFETY: the third argument of a handler with SA_SIGINFO is the interrupted thread's ucontext_t.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX]
        .map(|register| registers[register as usize] as u32)
}

fn describe(line: &mut Line, call: c_int, arguments: [u32; 3]) -> fmt::Result {
    let prefix = PREFIX.get().map_or("", String::as_str);
    let name = usize::try_from(call)
        .ok()
        .and_then(syscalls::Sysno::new)
        .map_or("unknown", |call| call.name());
    let [first, second, third] = arguments;
    write!(
        line,
        "{prefix}system call {name} ({call}) with {first:#x}, {second:#x}, {third:#x} is forbidden by \
         the filter {:?}: ending",
        FILTER.get(),
    )
}

/// Text in a fixed place; what does not fit is cut off.
struct Line {
    text: [u8; 256],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            text: [0; 256],
            length: 0,
        }
    }
}

impl Line {
    /// The line with its end.
    fn bytes(&mut self) -> &[u8] {
        let end = self.length.min(self.text.len() - 1);
        self.text[end] = b'\n';
        &self.text[..=end]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.text[self.length..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_call_and_ends() {
        let mut line = Line::default();
        describe(&mut line, libc::SYS_io_uring_setup as c_int, [1, 2, 3]).unwrap();
        let text = String::from_utf8(line.bytes().to_vec()).unwrap();
        assert!(text.contains("system call io_uring_setup (425) with 0x1, 0x2, 0x3"));
        assert!(text.ends_with('\n'));

        let mut line = Line::default();
        describe(&mut line, -1, [0; 3]).unwrap();
        assert!(line.bytes().starts_with(b"system call unknown (-1)"));
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_off() {
        let mut line = Line::default();
        for _ in 0..100 {
            line.write_str("0123456789").unwrap();
        }
        let bytes = line.bytes();
        assert_eq!(bytes.len(), 256);
        assert_eq!(bytes.last(), Some(&b'\n'));
    }
}
