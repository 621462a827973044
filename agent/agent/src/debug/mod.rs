//! The debug console: a person on the host asks, line by line, what is in this guest. `Hello` turns it on,
//! and a port of that name at the machine's console does.
//!
//! ```text
//! vsock (the host only) ── at most CONSOLES at a time ──┬──> line -> look -> answer, END
//! port of the virtio console ── one at a time ──────────┘
//! ```
//!
//! | file | job |
//! |---|---|
//! | `mod.rs` | connections, and an answer for a line |
//! | `port.rs` | the port: there or not, its host there or away |
//! | `lines.rs` | lines out of bytes that never end |
//! | `look.rs` | what can be asked, and the answers |
//! | `processes.rs` | processes, as /proc tells them |
//! | `file.rs` | files of /proc and /sys, the kernel's messages |
//!
//! Nothing here changes anything. What it reads is the containers' doing in part: answers are bounded,
//! and one that hangs ends its connection and nothing else.

mod file;
mod lines;
mod look;
mod port;
mod processes;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use isopod_protocol::debug::{ANSWER_LEN, DONE, END, FAILED, LINE_LEN, MARK};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    sync::{OwnedSemaphorePermit, Semaphore},
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
    #[error("no answer within {LOOK_WAIT:?}")]
    TimedOut,
    #[error("a question is one line of at most {LINE_LEN} bytes")]
    TooLong,
    #[error("several answers that were asked for here hang: no more are begun")]
    Hang,
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

/// Answers at the port of the machine's console from now on, if it has one.
pub(crate) fn serve_port(pod: &Arc<Pod>) {
    tokio::spawn(port::serve(Arc::clone(pod)));
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
            let _ = converse(stream, &pod, &Arc::new(place)).await;
        });
    }
}

async fn converse(
    stream: impl Stream,
    pod: &Arc<Pod>,
    place: &Arc<OwnedSemaphorePermit>,
) -> io::Result<()> {
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
        let answer = answer(&line, pod, Arc::clone(place)).await;
        let ends = matches!(answer, Err(LookError::TimedOut));
        write.write_all(&encode(answer)).await?;
        if ends {
            return Ok(());
        }
    }
}

/// Answers a line. `place` is taken as long as that goes on, which is longer than it is waited for where a
/// look hangs.
async fn answer(
    line: &[u8],
    pod: &Arc<Pod>,
    place: impl Send + 'static,
) -> Result<String, LookError> {
    let line = String::from_utf8_lossy(line).into_owned();
    let pod = Arc::clone(pod);
    let look = tokio::task::spawn_blocking(move || {
        let answer = look::answer(&line, &pod);
        drop(place);
        answer
    });
    match timeout(LOOK_WAIT, look).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => Err(LookError::TimedOut),
    }
}

/// What answers a line that is to be sent back; `None`: it is a question.
fn echo(line: &[u8]) -> Option<Vec<u8>> {
    let token = line.strip_prefix(&[MARK])?.trim_ascii_end();
    let token = token.iter().copied().filter(|byte| *byte != END);
    Some([END, MARK].into_iter().chain(token).chain([END]).collect())
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
    fn a_mark_comes_back_behind_the_end_of_whatever_was_before() {
        assert_eq!(echo(b"=7f3a\n").unwrap(), b"\0=7f3a\0");
        assert_eq!(echo(b"=a\0b\r\n").unwrap(), b"\0=ab\0");
        assert_eq!(echo(b"memory\n"), None);
        assert_eq!(echo(b"\n"), None);
    }

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
