//! How a process's standard streams reach the host: which streams it has, its pipes, the copying.
//!
//! ```text
//! host ── vsock stream, claimed by its id ── copy ── our end ═ pipe or terminal ═ the process
//! ```

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use isopod_container::Streams;
use isopod_protocol::agent::Stdio;

use crate::{
    fault::Fault,
    listen::Stream,
    pipes::{self, End},
    pod::Pod,
    process::Process,
};

/// Which stream ids a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wiring {
    terminal: bool,
    stdin: Option<u64>,
    stdout: Option<u64>,
    stderr: Option<u64>,
}

impl Wiring {
    pub(crate) fn new(stdio: &Stdio) -> Result<Self, Fault> {
        let id = |id: u64| (id != 0).then_some(id);
        if stdio.terminal && stdio.stderr != 0 {
            return Err(Fault::Argument(
                "stdio.stderr: a terminal has no standard error of its own".to_owned(),
            ));
        }
        Ok(Self {
            terminal: stdio.terminal,
            stdin: id(stdio.stdin),
            stdout: id(stdio.stdout),
            stderr: id(stdio.stderr),
        })
    }

    /// The ids.
    pub(crate) fn ids(self) -> impl Iterator<Item = u64> {
        [self.stdin, self.stdout, self.stderr].into_iter().flatten()
    }
}

/// The host's streams of a process.
pub(crate) struct Claimed {
    stdin: Option<Box<dyn Stream>>,
    stdout: Option<Box<dyn Stream>>,
    stderr: Option<Box<dyn Stream>>,
}

/// Takes the streams that the host has opened, or waits for them.
pub(crate) async fn claim(pod: &Pod, wiring: Wiring) -> Result<Claimed, Fault> {
    let one = async |id: Option<u64>| match id {
        Some(id) => pod.streams.claim(id).await.map(Some),
        None => Ok(None),
    };
    let (stdin, stdout, stderr) =
        tokio::try_join!(one(wiring.stdin), one(wiring.stdout), one(wiring.stderr))?;
    Ok(Claimed {
        stdin,
        stdout,
        stderr,
    })
}

/// Our ends of a process's pipes.
#[derive(Default)]
pub(crate) struct Ends {
    stdin: Option<End>,
    stdout: Option<End>,
    stderr: Option<End>,
}

/// Makes what the process reads and writes, and our ends of it; a terminal is made later, by the process.
pub(crate) fn connect(wiring: Wiring) -> io::Result<(Streams, Ends)> {
    if wiring.terminal {
        return Ok((Streams::Terminal, Ends::default()));
    }
    let null = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
    };
    let mut ends = Ends::default();
    let mut split = |(theirs, ours): (OwnedFd, End), slot: fn(&mut Ends) -> &mut Option<End>| {
        *slot(&mut ends) = Some(ours);
        theirs
    };
    let stdin = match wiring.stdin {
        Some(_) => split(pipes::input_pipe()?, |ends| &mut ends.stdin),
        None => null()?,
    };
    let stdout = match wiring.stdout {
        Some(_) => split(pipes::output_pipe()?, |ends| &mut ends.stdout),
        None => null()?,
    };
    let stderr = match wiring.stderr {
        Some(_) => split(pipes::output_pipe()?, |ends| &mut ends.stderr),
        None => null()?,
    };
    Ok((Streams::Plain([stdin, stdout, stderr]), ends))
}

/// Starts copying. The copies end by themselves, with the process's or the host's ends.
pub(crate) fn copy(process: &Process, claimed: Claimed, ends: Ends, terminal: Option<Arc<End>>) {
    let closed = process.input_closed();
    if let Some(master) = terminal {
        if let Some(stdin) = claimed.stdin {
            tokio::spawn(pipes::copy_in(stdin, Arc::clone(&master), closed));
        }
        match claimed.stdout {
            Some(stdout) => tokio::spawn(pipes::copy_out(master, stdout)),
            None => tokio::spawn(pipes::copy_out(master, Box::new(tokio::io::empty()))),
        };
        return;
    }
    if let (Some(from), Some(to)) = (claimed.stdin, ends.stdin) {
        tokio::spawn(pipes::copy_in(from, Arc::new(to), closed));
    }
    for (from, to) in [(ends.stdout, claimed.stdout), (ends.stderr, claimed.stderr)] {
        if let (Some(from), Some(to)) = (from, to) {
            tokio::spawn(pipes::copy_out(Arc::new(from), to));
        }
    }
}
