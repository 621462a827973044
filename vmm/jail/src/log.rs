//! The log of a jailed process: one line per event on standard error, with the pod's name.
//!
//! The `log` crate is deliberately not connected: libraries report every odd request there (of
//! FUSE, of vhost-user), and what a guest can write at will does not belong in the host's log.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Sends events of `program` to standard error from now on.
pub fn start(program: &str, pod: &str) {
    let subscriber = tracing_subscriber::fmt()
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_writer(Stderr {
            prefix: format!("{program}: pod {pod}:"),
        })
        .finish();
    // Fails only if started twice; the first one goes on.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Stderr {
    prefix: String,
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            prefix: &self.prefix,
        }
    }
}

/// The writer of one event, which arrives in one piece.
struct Line<'a> {
    prefix: &'a str,
}

impl Write for Line<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = [self.prefix.as_bytes(), event].concat();
        io::stderr().lock().write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
