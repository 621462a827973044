//! The operator's way to a pod's monitor: a socket in the pod's directory, which only root may enter. The
//! shim serves it as long as the machine lives (`engine/kvm/operators.rs`); `isopod` is the client.
//!
//! ```text
//!   operator   a line: what he wants
//!   shim       a line: OK, TAKEN, OFF, or FAILED and why
//!                with the OK of `debug` goes a descriptor
//!                behind the OK of `metrics` comes JSON, to the end
//! ```
//!
//! The connection is his hold on what he was given: the shim takes it back when he closes it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncReadExt as _, Interest},
    net::UnixStream,
    time::timeout,
};

/// Bytes of a line at most, its end included.
const LINE_LEN: usize = 512;
/// Until a line is there. The shim waits for the monitor no longer than half of it.
const LIMIT: Duration = Duration::from_secs(20);

/// What an operator can want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// A stream to the console's interactive port, at which the agent answers.
    Debug,
    /// What the monitor counts.
    Metrics,
}

impl Wish {
    const ALL: [Self; 2] = [Self::Debug, Self::Metrics];

    fn word(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Metrics => "metrics",
        }
    }
}

/// He does not get it.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// There is no such socket, or nobody at it.
    #[error("{0}")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("talk to the pod's shim: {0}")]
    Talk(#[from] io::Error),
    /// The shim's time is over.
    #[error("the pod's shim did not answer within {LIMIT:?}")]
    TimedOut,
    /// It is lent to one at a time.
    #[error("somebody else has it")]
    Taken,
    /// The pod started without it.
    #[error("this pod was started without it")]
    Off,
    /// The monitor does not give it.
    #[error("{0}")]
    Failed(String),
    /// Not what this program understands.
    #[error("its line is none of this program's: the pod was started by another version")]
    Line,
}

impl OperatorError {
    fn line(&self) -> String {
        match self {
            Self::Taken => "TAKEN\n".to_owned(),
            Self::Off => "OFF\n".to_owned(),
            other => {
                let mut line = String::from("FAILED ");
                for c in other.to_string().chars() {
                    // The longest character, and the end.
                    if line.len() + 5 > LINE_LEN {
                        break;
                    }
                    line.push(if c.is_control() { ' ' } else { c });
                }
                line + "\n"
            }
        }
    }

    fn from_line(line: &str) -> Result<(), Self> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("OK", "") => Ok(()),
            ("TAKEN", "") => Err(Self::Taken),
            ("OFF", "") => Err(Self::Off),
            ("FAILED", why) => Err(Self::Failed(why.to_owned())),
            _ => Err(Self::Line),
        }
    }
}

/// Asks for something. Answers the connection, to be kept as long as it is used, and what came with it.
pub(crate) async fn ask(
    socket: &Path,
    wish: Wish,
) -> Result<(UnixStream, Option<OwnedFd>), OperatorError> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.map_err(OperatorError::Connect)?;
    say(&stream, &format!("{}\n", wish.word()), None)?;
    let mut text = Vec::new();
    let mut given = None;
    while text.last() != Some(&b'\n') {
        let received = timeout(LIMIT, receive(&stream, &mut text, &mut given)).await;
        if received.map_err(|_| OperatorError::TimedOut)?? == 0 || text.len() > LINE_LEN {
            return Err(OperatorError::Line);
        }
    }
    let line = String::from_utf8_lossy(&text);
    OperatorError::from_line(line.trim_end())?;
    Ok((stream, given))
}

async fn receive(
    stream: &UnixStream,
    text: &mut Vec<u8>,
    given: &mut Option<OwnedFd>,
) -> io::Result<usize> {
    let receive = || {
        // What follows the line is not for here.
        let mut bytes = [0; 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut room = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(stream, &mut room, &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                *given = rights.last();
            }
        }
        text.extend_from_slice(bytes.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes)
    };
    stream.async_io(Interest::READABLE, receive).await
}

/// What the one at the other end wants; `None`: nothing that there is.
pub(crate) async fn wish(stream: &mut UnixStream) -> Result<Option<Wish>, OperatorError> {
    let mut line = Vec::new();
    let read = async {
        while line.len() < LINE_LEN {
            match stream.read_u8().await? {
                b'\n' => break,
                byte => line.push(byte),
            }
        }
        Ok::<_, io::Error>(())
    };
    timeout(LIMIT, read)
        .await
        .map_err(|_| OperatorError::TimedOut)??;
    let is_it = |wish: &Wish| wish.word().as_bytes() == line;
    Ok(Wish::ALL.into_iter().find(is_it))
}

/// Grants a wish, or does not.
pub(crate) fn tell(
    stream: &UnixStream,
    answer: Result<Option<BorrowedFd<'_>>, &OperatorError>,
) -> io::Result<()> {
    match answer {
        Ok(given) => say(stream, "OK\n", given),
        Err(error) => say(stream, &error.line(), None),
    }
}

/// A line on a socket that has never been written to: there is room for it.
fn say(stream: &UnixStream, line: &str, given: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let given = given.as_slice();
    if !given.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(given));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let line = [IoSlice::new(line.as_bytes())];
    sendmsg(stream.as_fd(), &line, &mut ancillary, flags)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::{io::AsyncWriteExt as _, net::UnixListener};

    use super::*;

    /// Asks one who answers with bytes, whatever he is asked.
    async fn answered(
        bytes: &'static [u8],
    ) -> Result<(UnixStream, Option<OwnedFd>), OperatorError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_eq!(wish(&mut stream).await.unwrap(), Some(Wish::Debug));
            // He may have left.
            let _ = stream.write_all(bytes).await;
        });
        let answer = ask(&path, Wish::Debug).await;
        serving.await.unwrap();
        answer
    }

    #[rstest]
    #[case(b"OK\n", "granted")]
    #[case(b"TAKEN\n", "somebody else")]
    #[case(b"OFF\n", "without it")]
    #[case(b"FAILED the slot is on fire\n", "the slot is on fire")]
    #[case(b"", "another version")]
    #[case(b"OK", "another version")]
    #[case(b"OK yes\n", "another version")]
    #[case(b"\xff\n", "another version")]
    #[case(&[b'x'; 5000], "another version")]
    #[tokio::test]
    async fn answers_are_understood(#[case] bytes: &'static [u8], #[case] words: &str) {
        let told = match answered(bytes).await {
            Ok(_) => "granted".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(told.contains(words), "{told}");
    }

    #[rstest]
    #[case(b"debug\n", Some(Wish::Debug))]
    #[case(b"metrics\n", Some(Wish::Metrics))]
    #[case(b"debug me\n", None)]
    #[case(b"\n", None)]
    #[case(&[b'd'; 4000], None)]
    #[tokio::test]
    async fn wishes_are_words(#[case] bytes: &'static [u8], #[case] expected: Option<Wish>) {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).await.unwrap();
        assert_eq!(wish(&mut ours).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_descriptor_goes_with_a_grant() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (given, mut other) = UnixStream::pair().unwrap();
        tell(&ours, Ok(Some(given.as_fd()))).unwrap();
        drop(given);
        let (mut text, mut received) = (Vec::new(), None);
        while text != b"OK\n" {
            receive(&theirs, &mut text, &mut received).await.unwrap();
        }
        let received = std::os::unix::net::UnixStream::from(received.unwrap());
        other.write_all(b"through").await.unwrap();
        let mut received = UnixStream::from_std(received).unwrap();
        let mut bytes = [0; 7];
        received.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"through");
    }

    #[test]
    fn what_fails_is_told_in_one_line() {
        let long = OperatorError::Failed(format!("a\nb\u{1b}{}", "é".repeat(1000)));
        let line = long.line();
        assert!(
            (LINE_LEN - 5..=LINE_LEN).contains(&line.len()),
            "{}",
            line.len()
        );
        assert!(line.starts_with("FAILED a b é") && line.ends_with("é\n"));
        let told = OperatorError::from_line(line.trim_end()).unwrap_err();
        assert!(matches!(told, OperatorError::Failed(why) if why.starts_with("a b ")));
    }
}
