//! Programs with a time limit: nothing here waits for ever.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// What all limits are multiplied by.
static PATIENCE: AtomicU32 = AtomicU32::new(1);

/// From now on everything that this process waits for may take so many times as long as is usual.
pub(crate) fn be_patient(times: u32) {
    PATIENCE.store(times, Ordering::Relaxed);
}

/// A limit, with the patience that was asked for.
pub(crate) fn patient(limit: Duration) -> Duration {
    limit.saturating_mul(PATIENCE.load(Ordering::Relaxed))
}

/// How a program ended, and what it said.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; 128 + signal when a signal killed it.
    pub code: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// Wall time.
    pub took: Duration,
}

impl Finished {
    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself when the code is 0, otherwise an error with everything it said.
    pub fn ok(self) -> Result<Self> {
        self.code_is(0)
    }

    /// Itself when the code is the expected one.
    pub fn code_is(self, expected: i32) -> Result<Self> {
        if self.code != expected {
            bail!(
                "exit code {}, expected {expected}\nstdout: {}\nstderr: {}",
                self.code,
                shorten(&self.out()),
                shorten(&self.err())
            );
        }
        Ok(self)
    }
}

/// The end of a long text, which is where programs say why they failed.
pub fn shorten(text: &str) -> String {
    const KEEP: usize = 4000;
    match text.char_indices().rev().nth(KEEP) {
        Some((at, _)) => format!("[...]{}", text.get(at..).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn code_of(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        if let Some(mut stream) = stream {
            let mut buffer = vec![0; 65536];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let _ = sender.send(buffer.get(..count).unwrap_or_default().to_vec());
            }
        }
    });
    receiver
}

/// Runs a program to its end, giving it `stdin` (nothing: end of file at once).
pub fn run(command: &mut Command, stdin: Option<Vec<u8>>, limit: Duration) -> Result<Finished> {
    let began = Instant::now();
    let mut child = command
        .stdin(if stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), stdin) {
        thread::spawn(move || {
            // A program may end before it has read everything.
            let _ = pipe.write_all(&bytes);
        });
    }
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = wait(&mut child, limit)?;
    let took = began.elapsed();
    let soon = Instant::now() + Duration::from_secs(2);
    let (stdout, stderr) = (drain(&out, soon), drain(&err, soon));
    let Some(status) = status else {
        bail!(
            "{command:?} was not done after {limit:?}\nstdout: {}\nstderr: {}",
            shorten(&String::from_utf8_lossy(&stdout)),
            shorten(&String::from_utf8_lossy(&stderr))
        );
    };
    Ok(Finished {
        code: code_of(status),
        stdout,
        stderr,
        took,
    })
}

/// Runs a program whose standard input stays open, and empty, until it ends: it can tell from that whether
/// this process lives.
pub fn run_held(command: &mut Command, limit: Duration) -> Result<Finished> {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    // `Child::wait` would close it.
    let held = child.stdin.take();
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = wait(&mut child, limit)?;
    drop(held);
    let soon = Instant::now() + Duration::from_secs(2);
    let (stdout, mut stderr) = (drain(&out, soon), drain(&err, soon));
    if status.is_none() {
        stderr.extend_from_slice(format!("\nnot done after {limit:?}: killed\n").as_bytes());
    }
    let code = status.map_or(124, code_of);
    Ok(Finished {
        code,
        stdout,
        stderr,
        took: began.elapsed(),
    })
}

/// Reads until the stream ends, which a grandchild that holds it must not delay.
fn drain(chunks: &Receiver<Vec<u8>>, until: Instant) -> Vec<u8> {
    let mut all = Vec::new();
    while let Ok(mut chunk) = chunks.recv_timeout(until.saturating_duration_since(Instant::now())) {
        all.append(&mut chunk);
    }
    all
}

/// Waits for the end of a child; kills it and answers `None` when the limit passes.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + patient(limit);
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Asks `question` again and again until it answers, or fails with `what` after `limit`.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let until = Instant::now() + patient(limit);
    loop {
        if let Some(answer) = question().with_context(|| what.to_owned())? {
            return Ok(answer);
        }
        if Instant::now() >= until {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A program that runs beside the case, its output read line by line. Killed when dropped.
pub struct Background {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Background {
    /// Starts it; standard output and standard error come as one sequence of lines.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let (sender, lines) = mpsc::channel();
        for stream in [
            child
                .stdout
                .take()
                .map(|s| Box::new(s) as Box<dyn Read + Send>),
            child
                .stderr
                .take()
                .map(|s| Box::new(s) as Box<dyn Read + Send>),
        ]
        .into_iter()
        .flatten()
        {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    if sender
                        .send(String::from_utf8_lossy(&line).into_owned())
                        .is_err()
                    {
                        break;
                    }
                }
            });
        }
        Ok(Self {
            child,
            lines,
            seen: Vec::new(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line, seen already or yet to come, that satisfies `wanted`.
    pub fn line(&mut self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        if let Some(line) = self.seen.iter().find(|line| wanted(line)) {
            return Ok(line.clone());
        }
        let until = Instant::now() + patient(limit);
        loop {
            match self
                .lines
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "no such line within {limit:?}; seen:\n{}",
                        self.seen.join("\n")
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(
                        "it ended without such a line; seen:\n{}",
                        self.seen.join("\n")
                    )
                }
            }
        }
    }

    /// Every line so far.
    pub fn lines(&mut self) -> &[String] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// Forgets the lines seen so far.
    pub fn forget(&mut self) {
        self.lines();
        self.seen.clear();
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let pipe = self
            .child
            .stdin
            .as_mut()
            .context("its standard input is closed")?;
        pipe.write_all(bytes)?;
        Ok(pipe.flush()?)
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for its end.
    pub fn finish(&mut self, limit: Duration) -> Result<i32> {
        match wait(&mut self.child, limit)? {
            Some(status) => Ok(code_of(status)),
            None => bail!(
                "still running after {limit:?}; seen:\n{}",
                self.lines().join("\n")
            ),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
