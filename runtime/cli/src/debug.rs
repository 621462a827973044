//! `isopod debug`: a look into a running pod's guest, whose agent answers.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use isopod_sandbox::debug::{Answer, Console};
use isopod_settings::Settings;
use tokio::runtime::Runtime;

use crate::list::{self, Name};

const PROMPT: &str = "isopod> ";

/// Asks what `question` says, or what standard input says line by line.
pub fn run(config: Option<&Path>, pod: &str, question: &[String]) -> anyhow::Result<ExitCode> {
    let root = rustix::process::geteuid().is_root();
    ensure!(root, "only root may look into pods");
    let settings = Settings::load(config)?;
    let Name { namespace, id } = find(list::names(), pod)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let console = runtime.block_on(Console::open(&settings, &namespace, &id))?;
    match question {
        [] => converse(&runtime, console),
        words => once(&runtime, console, &words.join(" ")),
    }
}

/// The pod that `[NAMESPACE/]ID` names.
fn find(names: Vec<Name>, wanted: &str) -> anyhow::Result<Name> {
    let (namespace, id) = match wanted.split_once('/') {
        Some((namespace, id)) => (Some(namespace), id),
        None => (None, wanted),
    };
    let is_it = |name: &Name| {
        name.id == id && namespace.is_none_or(|namespace| name.namespace == namespace)
    };
    let mut found: Vec<Name> = names.into_iter().filter(is_it).collect();
    match (found.pop(), found.first()) {
        (Some(name), None) => Ok(name),
        (None, _) => bail!("no pod {wanted} runs here; `isopod list` tells which do"),
        (Some(_), Some(_)) => bail!("{wanted} runs in several namespaces: say NAMESPACE/{wanted}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_found_by_its_id_or_with_its_namespace() {
        let name = |namespace: &str, id: &str| Name {
            namespace: namespace.into(),
            id: id.into(),
        };
        let names = vec![name("a", "x"), name("b", "x"), name("b", "y")];
        let found = |wanted| find(names.clone(), wanted).map_err(|error| error.to_string());
        assert_eq!(found("y"), Ok(name("b", "y")));
        assert_eq!(found("b/y"), Ok(name("b", "y")));
        assert_eq!(found("a/x"), Ok(name("a", "x")));
        assert!(found("x").unwrap_err().contains("several namespaces"));
        for none in ["z", "a/y", "", "/", "a/x/y"] {
            assert!(found(none).unwrap_err().contains("isopod list"), "{none}");
        }
    }
}
