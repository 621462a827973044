//! A person's look into a running pod: questions to its agent, which it answers if the pod's settings
//! allowed it (`debug.console`). For the operator's command line.
//!
//! ```text
//! monitor.sock (isopod-vmm) ── a stream to the console's port ──> agent     one person at a time
//!    not there, or taken
//!        └──> vsock.sock ── CONNECT ────────────────────────────> agent     a few
//! ```
//!
//! The first needs nothing of the guest but its console's driver and the agent's one thread: it works where
//! vsock or the agent's calls do not. The pod's driver has no part in it: whoever may open the pod's directory, root, may ask.

use std::{io, os::fd::OwnedFd, time::Duration};

use isopod_protocol::{
    debug::{ANSWER_LEN, DONE, END, FAILED, LINE_LEN, MARK},
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
    operator::{self, OperatorError, Wish},
    plan::PodPaths,
};

/// Until an answer is there: the agent gives up earlier.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes that may be on their way to the port's last visitor: what the driver's ring and the device hold, and
/// two answers.
const STALE_LEN: usize = 6 << 20;

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
    /// The way that the monitor has is taken, and the other is not there.
    #[error(
        "somebody else looks into pod {pod}, and its vsock, which several could use, does not serve: {reason}"
    )]
    Taken {
        /// Which.
        pod: String,
        /// What is wrong with vsock.
        reason: String,
    },
    /// The guest still answers what others asked.
    #[error(
        "more than {STALE_LEN} bytes of the guest's belong to somebody else's questions: try again"
    )]
    Stale,
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
    /// To the pod's shim, which takes the console's port back when this closes.
    _hold: Option<UnixStream>,
}

impl Console {
    /// Connects to a pod by containerd's namespace and the id of its first container.
    ///
    /// # Errors
    /// See [`DebugError`].
    pub async fn open(settings: &Settings, namespace: &str, id: &str) -> Result<Self, DebugError> {
        let paths = PodPaths::new(&settings.paths.state, namespace, id);
        let pod = format!("{namespace}/{id}");
        let failed = |reason: String| DebugError::Connect {
            pod: pod.clone(),
            reason: format!("{reason} ({})", paths.monitor().display()),
        };
        match operator::ask(&paths.monitor(), Wish::Debug).await {
            Ok((hold, Some(stream))) => Self::at_port(hold, stream).await,
            Ok((_, None)) => Err(failed("it gave nothing".to_owned())),
            // The pod's machine is another program's, or there is no such pod.
            Err(OperatorError::Connect(error)) if error.kind() == io::ErrorKind::NotFound => {
                Self::by_vsock(&paths, pod).await
            }
            Err(OperatorError::Taken) => {
                let other = Self::by_vsock(&paths, pod.clone()).await;
                other.map_err(|error| DebugError::Taken {
                    pod,
                    reason: error.to_string(),
                })
            }
            Err(OperatorError::Off) => Err(DebugError::Off { pod }),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    async fn by_vsock(paths: &PodPaths, pod: String) -> Result<Self, DebugError> {
        let vsock = paths.vsock();
        match timeout(LIMIT, connect(&vsock, ports::DEBUG)).await {
            Ok(Ok(stream)) => Ok(Self {
                stream: BufReader::new(stream),
                _hold: None,
            }),
            Ok(Err(GuestError::Refused { .. })) => Err(DebugError::Off { pod }),
            Ok(Err(error)) => Err(DebugError::Connect {
                pod,
                reason: format!("{error} ({})", vsock.display()),
            }),
            Err(_) => Err(DebugError::TimedOut(LIMIT)),
        }
    }

    async fn at_port(hold: UnixStream, stream: OwnedFd) -> Result<Self, DebugError> {
        let stream = std::os::unix::net::UnixStream::from(stream);
        stream.set_nonblocking(true)?;
        let mut console = Self {
            stream: BufReader::new(UnixStream::from_std(stream)?),
            _hold: Some(hold),
        };
        let begun = timeout(LIMIT, console.begin(token()?)).await;
        begun.map_err(|_| DebugError::TimedOut(LIMIT))??;
        Ok(console)
    }

    /// Passes over what the guest says to the port's last visitor.
    async fn begin(&mut self, token: String) -> Result<(), DebugError> {
        let mut mark = vec![MARK];
        mark.extend(token.bytes());
        let line = [b"\n", mark.as_slice(), b"\n"].concat();
        self.stream.get_mut().write_all(&line).await?;
        mark.push(END);
        let mut passed = 0;
        let mut bytes = Vec::new();
        while bytes != mark {
            bytes.clear();
            let mut bounded = (&mut self.stream).take(ANSWER_LEN as u64);
            let read = bounded.read_until(END, &mut bytes).await?;
            passed += read;
            if read == 0 {
                return Err(DebugError::Answer("the connection was closed"));
            }
            if passed > STALE_LEN {
                return Err(DebugError::Stale);
            }
        }
        Ok(())
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

/// What no guest can have said before it was asked to.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
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
#[path = "debug_tests.rs"]
mod tests;
