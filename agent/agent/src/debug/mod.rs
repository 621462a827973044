//! The debug console: a person on the host asks, line by line, what is in this guest. `Hello` turns it on.
//!
//! ```text
//! listen (vsock, the host only) ── at most CONSOLES at a time ──> line -> look -> answer, END
//! ```
//!
//! | file | job |
//! |---|---|
//! | `mod.rs` | connections and their lines |
//! | `look.rs` | what can be asked, and the answers |
//! | `processes.rs` | processes, as /proc tells them |
//! | `file.rs` | files of /proc and /sys, the kernel's messages |
//!
//! Nothing here changes anything. What it reads is the containers' doing in part: answers are bounded,
//! and one that hangs ends its connection and nothing else.

mod file;
mod look;
mod processes;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use isopod_protocol::debug::{ANSWER_LEN, DONE, END, FAILED, LINE_LEN};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    sync::Semaphore,
    time::timeout,
};

use crate::{
    Place,
    listen::{self, Listener, Stream},
    pod::Pod,
};

/// Persons at a time; one more is turned away.
const CONSOLES: usize = 4;
/// An answer is read out of kernel memory. A process that hangs while it is looked at, holding its own
/// locks, makes one wait.
const LOOK_WAIT: Duration = Duration::from_secs(10);

/// What was asked is not told, and why.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("{0:?} is nothing that can be asked; `help` tells what can")]
    Unknown(String),
    #[error("{question}: {reason}")]
    Words {
        question: &'static str,
        reason: &'static str,
    },
    #[error("{what}: {source}")]
    Read { what: String, source: io::Error },
    #[error("no container {0}")]
    NoContainer(String),
    #[error("no answer within {LOOK_WAIT:?}; this console closes")]
    TimedOut,
}

fn unread(what: impl Into<String>) -> impl FnOnce(io::Error) -> LookError {
    let what = what.into();
    move |source| LookError::Read { what, source }
}

/// Whether there is a console: once there is one it stays.
#[derive(Default)]
pub(crate) struct Switch(AtomicBool);

impl Switch {
    /// Serves consoles from now on, if it does not yet.
    ///
    /// # Errors
    /// The port is not to be had.
    pub(crate) fn turn_on(&self, place: &Place, pod: &Arc<Pod>) -> io::Result<()> {
        if !self.0.load(Ordering::Relaxed) {
            tokio::spawn(serve(listen::debug(place)?, Arc::clone(pod)));
            self.0.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Serves consoles for ever.
async fn serve(listener: Listener, pod: Arc<Pod>) {
    let places = Arc::new(Semaphore::new(CONSOLES));
    loop {
        let stream = listener.accept().await;
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let pod = Arc::clone(&pod);
        tokio::spawn(async move {
            // Whoever leaves in the middle of an answer has what he wanted.
            let _ = converse(stream, &pod).await;
            drop(place);
        });
    }
}

async fn converse(stream: impl Stream, pod: &Arc<Pod>) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(stream);
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(LINE_LEN as u64);
        bounded.read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            // The end, or a line that is none.
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let pod = Arc::clone(pod);
        let look = tokio::task::spawn_blocking(move || look::answer(&line, &pod));
        let (answer, ends) = match timeout(LOOK_WAIT, look).await {
            Ok(Ok(answer)) => (answer, false),
            Ok(Err(_)) | Err(_) => (Err(LookError::TimedOut), true),
        };
        write.write_all(&encode(answer)).await?;
        if ends {
            return Ok(());
        }
    }
}

fn encode(answer: Result<String, LookError>) -> Vec<u8> {
    let (first, text) = match answer {
        Ok(text) => (DONE, text),
        Err(error) => (FAILED, format!("{error}\n")),
    };
    let text = text.bytes().filter(|byte| *byte != END).take(ANSWER_LEN);
    [first].into_iter().chain(text).chain([END]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_framed_and_bounded() {
        assert_eq!(encode(Ok("a\0b\n".to_owned())), b"+ab\n\0");
        let failed = encode(Err(LookError::NoContainer("x".to_owned())));
        assert_eq!(failed, b"-no container x\n\0");
        let long = encode(Ok("x".repeat(ANSWER_LEN + 5)));
        assert_eq!(long.len(), ANSWER_LEN + 2);
        assert_eq!(long.last(), Some(&END));
    }
}
