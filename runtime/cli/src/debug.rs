//! `isopod debug`: a look into a running pod's guest, whose agent answers.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail};
use isopod_sandbox::debug::{Answer, Console};
use tokio::runtime::Runtime;

use crate::{list::Name, look::Look};

const PROMPT: &str = "isopod> ";

/// Asks what `question` says, or what standard input says line by line.
pub fn run(config: Option<&Path>, pod: &str, question: &[String]) -> anyhow::Result<ExitCode> {
    let Look {
        settings,
        name: Name { namespace, id },
        runtime,
    } = Look::at(config, pod)?;
    let console = runtime.block_on(Console::open(&settings, &namespace, &id))?;
    match question {
        [] => converse(&runtime, console),
        words => once(&runtime, console, &words.join(" ")),
    }
}

fn once(runtime: &Runtime, mut console: Console, question: &str) -> anyhow::Result<ExitCode> {
    let Answer { done, text } = runtime.block_on(console.ask(question))?;
    if !done {
        bail!("{}", text.trim_end());
    }
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn converse(runtime: &Runtime, mut console: Console) -> anyhow::Result<ExitCode> {
    let mut lines = io::stdin().lock();
    let prompt = io::stdin().is_terminal().then_some(PROMPT);
    let mut line = String::new();
    loop {
        say(prompt.unwrap_or_default())?;
        line.clear();
        let read = lines.read_line(&mut line).context("read a question")?;
        match line.trim() {
            "" if read == 0 => return Ok(ExitCode::SUCCESS),
            "" => {}
            "exit" | "quit" => return Ok(ExitCode::SUCCESS),
            question => say(&runtime.block_on(console.ask(question))?.text)?,
        }
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("print an answer")
}
