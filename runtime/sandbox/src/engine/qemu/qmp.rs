//! QMP, as much of it as is needed: the greeting, the events of an end, and `quit`.
//!
//! Follows docs/interop/qmp-spec.txt of QEMU 7.2: one JSON object per line.

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// Longest line that is read. The greeting and the events have some hundred bytes.
const LINE_LEN: u64 = 64 << 10;

/// What QEMU told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// It greeted: its main loop runs.
    pub greeted: bool,
    /// The reason of its SHUTDOWN event ("guest-reset", "guest-shutdown", "guest-panic", ...).
    pub shutdown: Option<String>,
    /// It closed the connection.
    pub closed: bool,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    event: Option<String>,
    #[serde(default)]
    data: EventData,
}

#[derive(Default, Deserialize)]
struct EventData {
    reason: Option<String>,
}

/// A connection to QEMU.
pub(super) struct Qmp {
    writer: OwnedWriteHalf,
    told: watch::Receiver<Told>,
}

impl Qmp {
    /// Begins to listen.
    pub fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let (tell, told) = watch::channel(Told::default());
        tokio::spawn(follow(reader, tell));
        Self { writer, told }
    }

    /// Waits until QEMU greeted (true) or hung up (false), and ends the negotiation.
    pub async fn greeting(&mut self) -> bool {
        let told = self.told.wait_for(|told| told.greeted || told.closed).await;
        if !told.is_ok_and(|told| told.greeted) {
            return false;
        }
        self.send("qmp_capabilities").await
    }

    /// Asks QEMU to end at once.
    pub async fn quit(&mut self) -> bool {
        self.send("quit").await
    }

    /// Waits until QEMU announced its end or hung up.
    pub async fn ending(&mut self) {
        let _ = self
            .told
            .wait_for(|told| told.shutdown.is_some() || told.closed)
            .await;
    }

    /// The reason of the SHUTDOWN event, if there was one.
    pub fn shutdown(&self) -> Option<String> {
        self.told.borrow().shutdown.clone()
    }

    async fn send(&mut self, command: &str) -> bool {
        let line = format!("{{\"execute\": \"{command}\"}}\r\n");
        self.writer.write_all(line.as_bytes()).await.is_ok()
    }
}

async fn follow(reader: OwnedReadHalf, tell: watch::Sender<Told>) {
    let mut reader = BufReader::with_capacity(1024, reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader)
            .take(LINE_LEN)
            .read_until(b'\n', &mut line)
            .await;
        // A line that is cut off by its limit does not parse and is skipped piece by piece.
        if !matches!(read, Ok(1..)) {
            break;
        }
        let Ok(message) = serde_json::from_slice::<Message>(&line) else {
            continue;
        };
        tell.send_modify(|told| {
            told.greeted |= message.greeting.is_some();
            if message.event.as_deref() == Some("SHUTDOWN") {
                told.shutdown = message.data.reason.or(Some("unknown".into()));
            }
        });
    }
    tell.send_modify(|told| told.closed = true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn greeting_events_and_end_are_seen() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours);
        let greeting = b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";
        theirs.write_all(greeting).await.unwrap();
        assert!(qmp.greeting().await);
        let mut sent = String::new();
        BufReader::new(&mut theirs)
            .read_line(&mut sent)
            .await
            .unwrap();
        assert_eq!(sent, "{\"execute\": \"qmp_capabilities\"}\r\n");
        assert_eq!(qmp.shutdown(), None);
        let events = b"{\"return\": {}}\r\nnonsense\r\n{\"event\": \"RESET\", \"data\": {\"guest\": true}}\r\n\
            {\"timestamp\": {}, \"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\r\n";
        theirs.write_all(events).await.unwrap();
        qmp.ending().await;
        assert_eq!(qmp.shutdown().as_deref(), Some("guest-reset"));
    }

    #[tokio::test]
    async fn a_hang_up_before_the_greeting_is_seen() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(!Qmp::new(ours).greeting().await);
    }

    #[tokio::test]
    async fn an_endless_line_is_not_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours);
        let flood = tokio::spawn(async move {
            for _ in 0..64 {
                theirs.write_all(&[b'x'; 4096]).await.unwrap();
            }
            theirs.write_all(b"\n{\"QMP\": {}}\n").await.unwrap();
            theirs
        });
        assert!(qmp.greeting().await);
        drop(flood.await.unwrap());
    }
}
