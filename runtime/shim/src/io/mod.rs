//! Standard streams: containerd's fifos on one side, the sandbox's sockets on the other.
//!
//! ```text
//! client --> stdin fifo --copy--> socket       ends when every writer closed the fifo; the shim holds
//!                                              one end itself until CloseIO
//! client <-- stdout fifo <--copy-- socket      ends when the container's last writer closed
//! logger <-- stdout pipe <--copy-- socket      the same, for `binary://` (logger.rs)
//! ```
//! Output fifos are opened for reading and writing: containerd may go and come back without the
//! container seeing a broken pipe, as with the runc shim.

mod logger;

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use isopod_sandbox::{Stdio, StdioRequest};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{UnixStream, unix::pipe},
    process::Child,
    task::JoinHandle,
    time,
};

pub use self::logger::Logged;
use self::logger::Logger;

/// One copy's buffer; a fifo holds 64 KiB.
const BUFFER: usize = 32 << 10;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `binary://` does not name a program that logs.
    #[error("{uri}: {why}; a logging program is given as binary:///path/of/program?key=value")]
    Logger {
        /// What was given.
        uri: String,
        /// Why not.
        why: String,
    },
    /// Standard error alone has a logging program.
    #[error("{0}: a logging program reads both outputs: give it for standard output too")]
    OneLogger(String),
    /// Any other scheme.
    #[error("{0}: the scheme of this stream is not known; use a fifo, file:// or binary://")]
    Scheme(String),
    /// `file://` for standard input.
    #[error("{0}: standard input must be a fifo")]
    Input(String),
    /// The fifo or file could not be opened.
    #[error("opening {path}: {source}")]
    Open {
        /// The fifo or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What containerd says about a process's streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// One stream for both directions' terminal.
    pub terminal: bool,
    /// A fifo; empty: none.
    pub stdin: String,
    /// A fifo or a URI; empty: none.
    pub stdout: String,
    /// A fifo or a URI; empty: none.
    pub stderr: String,
}

impl Paths {
    /// Which streams the process needs.
    pub fn request(&self) -> StdioRequest {
        StdioRequest {
            terminal: self.terminal,
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && !self.terminal,
        }
    }
}

/// A place for output.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Path(&'a Path),
    File(&'a Path),
    Program(&'a str),
}

impl<'a> Target<'a> {
    fn parse(text: &'a str) -> Result<Self, Error> {
        match text.split_once("://") {
            None => Ok(Self::Path(Path::new(text))),
            Some(("fifo", path)) => Ok(Self::Path(Path::new(path))),
            Some(("file", path)) => Ok(Self::File(Path::new(path))),
            Some(("binary", _)) => Ok(Self::Program(text)),
            Some(_) => Err(Error::Scheme(text.to_owned())),
        }
    }
}

type Output = Pin<Box<dyn AsyncWrite + Send>>;

struct Input {
    reader: pipe::Receiver,
    /// While it lives, the fifo has a writer.
    keeper: pipe::Sender,
}

/// containerd's ends, open and not yet connected.
#[derive(Default)]
pub struct Opened {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    logger: Option<Child>,
}

impl Opened {
    /// Opens every stream that `paths` names. Waits for nobody but a logging program.
    pub async fn open(paths: &Paths, logged: Logged<'_>) -> Result<Self, Error> {
        let stdin = paths.request().stdin;
        let stdin = stdin.then(|| input(&paths.stdin)).transpose()?;
        let outputs = Self::open_outputs(paths, logged).await?;
        Ok(Self { stdin, ..outputs })
    }

    /// Opens every output; the input waits for [`Copies::begin_input`]. For an exec, whose client may
    /// say that its input has ended only after the exec is known: until its start nobody reads.
    pub async fn open_outputs(paths: &Paths, logged: Logged<'_>) -> Result<Self, Error> {
        let wanted = paths.request();
        if wanted.stdout
            && let Target::Program(uri) = Target::parse(&paths.stdout)?
        {
            let logger = Logger::start(uri, logged).await?;
            return Ok(Self {
                stdout: Some(Box::pin(logger.stdout)),
                stderr: wanted.stderr.then(|| Box::pin(logger.stderr) as Output),
                logger: Some(logger.program),
                stdin: None,
            });
        }
        Ok(Self {
            stdout: wanted.stdout.then(|| output(&paths.stdout)).transpose()?,
            stderr: wanted.stderr.then(|| output(&paths.stderr)).transpose()?,
            ..Self::default()
        })
    }

    /// Copies from now on between these and the sandbox's ends.
    pub fn connect(self, stdio: Stdio) -> Copies {
        let mut copies = Copies::default();
        copies.logger = self.logger;
        for (from, to) in [(stdio.stdout, self.stdout), (stdio.stderr, self.stderr)] {
            if let (Some(from), Some(to)) = (from, to) {
                let copied = copies.copied.clone();
                let copy = tokio::spawn(copy(from, to, copied));
                copies.outputs.push(copy);
            }
        }
        match (self.stdin, stdio.stdin) {
            (Some(input), Some(to)) => copies.feed_from(input, to),
            (None, to) => copies.waiting = to,
            (Some(_), None) => {}
        }
        copies
    }
}

fn input(text: &str) -> Result<Input, Error> {
    let Target::Path(path) = Target::parse(text)? else {
        return Err(Error::Input(text.to_owned()));
    };
    let failed = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    let reader = pipe::OpenOptions::new()
        .open_receiver(path)
        .map_err(failed)?;
    // Opened second, without waiting: there is a reader.
    let keeper = pipe::OpenOptions::new().open_sender(path).map_err(failed)?;
    Ok(Input { reader, keeper })
}

fn output(text: &str) -> Result<Output, Error> {
    let (path, new) = match Target::parse(text)? {
        Target::Path(path) => (path, false),
        // A path without a scheme was made by containerd; only file:// may be new.
        Target::File(path) => (path, true),
        Target::Program(uri) => return Err(Error::OneLogger(uri.to_owned())),
    };
    let failed = |source| Error::Open {
        path: path.to_owned(),
        source,
    };
    let is_fifo = path
        .metadata()
        .is_ok_and(|found| found.file_type().is_fifo());
    if is_fifo {
        let fifo = pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(path)
            .map_err(failed)?;
        return Ok(Box::pin(fifo));
    }
    let file = OpenOptions::new()
        .append(true)
        .create(new)
        .mode(0o644)
        .open(path)
        .map_err(failed)?;
    Ok(Box::pin(tokio::fs::File::from_std(file)))
}

/// The running copies of one process.
#[derive(Default)]
pub struct Copies {
    outputs: Vec<JoinHandle<()>>,
    input: Option<JoinHandle<()>>,
    keeper: Option<pipe::Sender>,
    /// The sandbox's end of an input that has not begun.
    waiting: Option<UnixStream>,
    /// The client has said that its input ends.
    input_closed: bool,
    /// Output bytes so far: tells slow from stuck.
    copied: Arc<AtomicU64>,
    /// Reads the outputs. Killed if it is dropped before it was waited for.
    logger: Option<Child>,
}

impl Copies {
    fn feed_from(&mut self, input: Input, to: UnixStream) {
        self.keeper = (!self.input_closed).then_some(input.keeper);
        self.input = Some(tokio::spawn(feed(input.reader, to)));
    }

    /// Opens an input that waited, and copies it from now on.
    pub fn begin_input(&mut self, paths: &Paths) -> Result<(), Error> {
        if self.waiting.is_some() && !paths.stdin.is_empty() {
            let input = input(&paths.stdin)?;
            if let Some(to) = self.waiting.take() {
                self.feed_from(input, to);
            }
        }
        Ok(())
    }

    /// Lets standard input end when its other writers have closed it.
    pub fn close_input(&mut self) {
        self.input_closed = true;
        self.keeper = None;
    }

    /// Ends standard input's copy: nobody reads any more.
    pub fn stop_input(&mut self) {
        self.keeper = None;
        self.waiting = None;
        if let Some(input) = self.input.take() {
            input.abort();
        }
    }

    /// Waits until all output is written, then closes the fifos. Gives up when for `patience` not a
    /// byte moved: the client reads no more, or a stray process holds the stream.
    pub async fn drain(mut self, patience: Duration) {
        self.stop_input();
        for mut output in std::mem::take(&mut self.outputs) {
            let mut before = self.copied.load(Ordering::Relaxed);
            while time::timeout(patience, &mut output).await.is_err() {
                let now = self.copied.load(Ordering::Relaxed);
                if now == before {
                    output.abort();
                    break;
                }
                before = now;
            }
        }
        // The pipes are closed: it has all that there is.
        if let Some(logger) = self.logger.take() {
            logger::end(logger).await;
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.stop_input();
        for output in &self.outputs {
            output.abort();
        }
    }
}

async fn copy(mut from: UnixStream, mut to: Output, copied: Arc<AtomicU64>) {
    let mut buffer = vec![0; BUFFER];
    while let Some(chunk) = read(&mut from, &mut buffer).await {
        if to.write_all(chunk).await.is_err() {
            // A full disk behind file://, or a revoked fifo. The container must not block for it.
            while read(&mut from, &mut buffer).await.is_some() {}
            return;
        }
        let length = u64::try_from(chunk.len()).unwrap_or(0);
        copied.fetch_add(length, Ordering::Relaxed);
    }
    // A file's writes are done by another thread.
    let _ = to.flush().await;
}

async fn feed(mut from: pipe::Receiver, mut to: UnixStream) {
    let mut buffer = vec![0; BUFFER];
    while let Some(chunk) = read(&mut from, &mut buffer).await {
        if to.write_all(chunk).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// The next bytes; nothing at the end or after an error (a dead VM resets its streams).
async fn read<'a, R: AsyncRead + Unpin>(from: &mut R, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    match from.read(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(length) => buffer.get(..length),
    }
}

/// One process's copies, shared between the calls that end parts of it.
pub type SharedCopies = Mutex<Option<Copies>>;

#[cfg(test)]
mod tests;
