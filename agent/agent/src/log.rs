//! Messages go to the kernel's log. Priority 3 (error) and above show on the console, which the host
//! keeps: it is the only way to say something once the calls are gone.

use std::{fs::File, io::Write as _, panic, process};

/// An error: shown on the console.
pub(crate) fn error(message: &str) {
    write(3, message);
}

/// Something odd that is survived.
pub(crate) fn warning(message: &str) {
    write(4, message);
}

fn write(priority: u8, message: &str) {
    // One write is one record; the kernel takes some 900 bytes of it.
    let line: String = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(800)
        .collect();
    let record = format!("<{priority}>isopod-agent: {line}\n");
    if let Ok(mut kmsg) = File::options().write(true).open("/dev/kmsg") {
        // There is nowhere left to complain.
        let _ = kmsg.write_all(record.as_bytes());
    }
    #[cfg(feature = "testing")]
    eprint!("{record}");
}

/// A panic is written down and ends the process. As PID 1 that is a kernel panic, and with `panic=-1`
/// the end of the VM: better than a pod whose agent is half dead.
pub(crate) fn end_on_panic() {
    panic::set_hook(Box::new(|info| {
        error(&format!("panic: {info}"));
        process::abort();
    }));
}
