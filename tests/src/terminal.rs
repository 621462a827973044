//! A program on a pseudo-terminal, as a person would use it.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process;

/// A terminal and the program on it. The program is killed when this is dropped.
pub struct Terminal {
    master: File,
    child: Child,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts `command` with a new terminal as its controlling terminal, `columns` by `rows`.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Result<Self> {
        let pty = nix::pty::openpty(None, None).context("open a pseudo-terminal")?;
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        tcsetwinsize(&master, size(columns, rows))?;
        // setsid(1) makes the terminal the controlling one: without that no SIGWINCH arrives.
        let mut wrapped = Command::new("setsid");
        wrapped
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        let child = wrapped
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave)
            .spawn()
            .with_context(|| format!("start {wrapped:?}"))?;
        // The command holds copies of the slave; with them open the master never ends.
        drop(wrapped);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut reader, sink) = (master.try_clone()?, Arc::clone(&shown));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let text =
                    String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        Ok(Self {
            master,
            child,
            shown,
        })
    }

    /// Types.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Everything shown so far.
    pub fn shown(&self) -> String {
        self.shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until some text is shown.
    pub fn shows(&self, part: &str, limit: Duration) -> Result<()> {
        let found = process::eventually(&format!("{part:?} is shown"), limit, || {
            Ok(self.shown().contains(part).then_some(()))
        });
        found.with_context(|| format!("shown: {:?}", self.shown()))
    }

    /// Changes its size, which tells the program by SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        Ok(tcsetwinsize(&self.master, size(columns, rows))?)
    }

    /// Waits for the program's end.
    pub fn finish(&mut self, limit: Duration) -> Result<i32> {
        let ended = process::eventually("the program ends", limit, || Ok(self.child.try_wait()?));
        match ended
            .with_context(|| format!("shown: {:?}", self.shown()))?
            .code()
        {
            Some(code) => Ok(code),
            None => bail!("a signal ended it"),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
