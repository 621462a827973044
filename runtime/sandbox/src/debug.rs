//! A person's look into a running pod: questions to its agent, which it answers if the pod's settings
//! allowed it (`debug.console`). For the operator's command line.
//!
//! The pod's driver has no part in it: whoever may open the pod's directory, root, may ask.

use std::{io, time::Duration};

use isopod_protocol::{
    debug::{ANSWER_LEN, DONE, END, FAILED, LINE_LEN},
    ports,
};
use isopod_settings::Settings;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

use crate::{
    guest::{GuestError, connect::connect},
    plan::PodPaths,
};

/// Until an answer is there: the agent gives up earlier.
const LIMIT: Duration = Duration::from_secs(30);

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// Its guest does not listen.
    #[error(
        "the guest of pod {pod} does not listen: `debug.console = true` must be in its settings \
         before it starts"
    )]
    Off {
        /// Which.
        pod: String,
    },
    /// The pod has no socket, or one may not use it.
    #[error("connect to the guest of pod {pod}: {reason}")]
    Connect {
        /// Which.
        pod: String,
        /// Why.
        reason: String,
    },
    /// A question of more than a line.
    #[error("a question is one line of at most {LINE_LEN} bytes")]
    Question,
    /// Within the time there is.
    #[error("the guest did not answer within {0:?}")]
    TimedOut(Duration),
    /// The connection broke.
    #[error("talk to the guest: {0}")]
    Talk(#[from] io::Error),
    /// Something that is no answer.
    #[error("the guest's answer is none: {0}")]
    Answer(&'static str),
}

/// What the agent told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// It is what was asked for; else it says why not.
    pub done: bool,
    /// Without control characters but ends of lines and tabs: a guest must not write to a terminal what
    /// the terminal obeys.
    pub text: String,
}

/// A conversation with one agent.
#[derive(Debug)]
pub struct Console {
    stream: BufReader<UnixStream>,
}

impl Console {
    /// Connects to a pod by containerd's namespace and the id of its first container.
    ///
    /// # Errors
    /// See [`DebugError`].
    pub async fn open(settings: &Settings, namespace: &str, id: &str) -> Result<Self, DebugError> {
        let paths = PodPaths::new(&settings.paths.state, namespace, id);
        let pod = format!("{namespace}/{id}");
        let vsock = paths.vsock();
        match timeout(LIMIT, connect(&vsock, ports::DEBUG)).await {
            Ok(Ok(stream)) => Ok(Self {
                stream: BufReader::new(stream),
            }),
            Ok(Err(GuestError::Refused { .. })) => Err(DebugError::Off { pod }),
            Ok(Err(error)) => Err(DebugError::Connect {
                pod,
                reason: format!("{error} ({})", vsock.display()),
            }),
            Err(_) => Err(DebugError::TimedOut(LIMIT)),
        }
    }

    /// Asks one question.
    ///
    /// # Errors
    /// See [`DebugError`].
    pub async fn ask(&mut self, question: &str) -> Result<Answer, DebugError> {
        if question.len() >= LINE_LEN || question.contains('\n') {
            return Err(DebugError::Question);
        }
        let talk = async {
            let line = format!("{question}\n");
            self.stream.get_mut().write_all(line.as_bytes()).await?;
            let mut bytes = Vec::new();
            // The first byte and the last are not text.
            let mut bounded = (&mut self.stream).take(ANSWER_LEN as u64 + 2);
            bounded.read_until(END, &mut bytes).await?;
            Ok(bytes)
        };
        let bytes: io::Result<Vec<u8>> = timeout(LIMIT, talk)
            .await
            .map_err(|_| DebugError::TimedOut(LIMIT))?;
        decode(&bytes?)
    }
}

fn decode(bytes: &[u8]) -> Result<Answer, DebugError> {
    let (done, text) = match bytes {
        [] => return Err(DebugError::Answer("the connection was closed")),
        [DONE, text @ .., END] => (true, text),
        [FAILED, text @ .., END] => (false, text),
        _ => return Err(DebugError::Answer("it has no beginning or no end")),
    };
    let text = String::from_utf8_lossy(text);
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => '?',
        c => c,
    };
    Ok(Answer {
        done,
        text: text.chars().map(shown).collect(),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::net::UnixListener;

    use super::*;

    #[rstest]
    #[case(b"+a\tb\n\0", Some((true, "a\tb\n")))]
    #[case(b"-no such thing\0", Some((false, "no such thing")))]
    #[case(b"+\0", Some((true, "")))]
    // ESC ] 0 ; ... BEL names a window, CSI moves the cursor, 0x9b begins it in one byte.
    #[case(b"+\x1b]0;x\x07\x1b[2J\x7f\r\xc2\x9b\0", Some((true, "?]0;x??[2J???")))]
    #[case(b"+\xff\xfe\0", Some((true, "\u{fffd}\u{fffd}")))]
    #[case(b"", None)]
    #[case(b"\0", None)]
    #[case(b"+cut", None)]
    #[case(b"ok\0", None)]
    fn an_answer_is_text(#[case] bytes: &[u8], #[case] expected: Option<(bool, &str)>) {
        let found = decode(bytes).ok();
        let found = found.as_ref().map(|a| (a.done, a.text.as_str()));
        assert_eq!(found, expected);
    }

    /// Where a pod's socket is, and settings that lead there.
    fn place() -> (tempfile::TempDir, Settings, PodPaths) {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.paths.state = dir.path().to_owned();
        let paths = PodPaths::new(dir.path(), "ns", "pod");
        std::fs::create_dir(&paths.dir).unwrap();
        (dir, settings, paths)
    }

    /// Answers a connection with `said`, in turns with what it reads.
    async fn guest(listener: UnixListener, said: Vec<Vec<u8>>) {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        for said in said {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            // It may have left in the middle.
            let _ = stream.get_mut().write_all(&said).await;
        }
    }

    #[tokio::test]
    async fn questions_are_answered_in_turns() {
        let (_dir, settings, paths) = place();
        let listener = UnixListener::bind(paths.vsock()).unwrap();
        let said = vec![
            b"OK 1\n".to_vec(),
            b"+one\0".to_vec(),
            b"-two\0".to_vec(),
            vec![b'+'; ANSWER_LEN + 10],
        ];
        let serving = tokio::spawn(guest(listener, said));
        let mut console = Console::open(&settings, "ns", "pod").await.unwrap();
        assert_eq!(console.ask("a").await.unwrap().text, "one");
        assert!(!console.ask("b").await.unwrap().done);
        for wrong in ["a\nb".to_owned(), "a".repeat(LINE_LEN)] {
            let refused = console.ask(&wrong).await.unwrap_err();
            assert!(matches!(refused, DebugError::Question));
        }
        let endless = console.ask("c").await.unwrap_err();
        assert!(matches!(endless, DebugError::Answer(_)), "{endless}");
        drop(console);
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_does_not_listen_is_told_from_no_pod() {
        let (_dir, settings, paths) = place();
        let none = Console::open(&settings, "ns", "pod").await.unwrap_err();
        assert!(none.to_string().contains("vsock.sock"), "{none}");
        let listener = UnixListener::bind(paths.vsock()).unwrap();
        let serving = tokio::spawn(guest(listener, vec![Vec::new()]));
        let off = Console::open(&settings, "ns", "pod").await.unwrap_err();
        assert!(off.to_string().contains("debug.console"), "{off}");
        serving.await.unwrap();
    }
}
