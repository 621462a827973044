//! Containers as a case describes them: `bed.container().env("A=b").run(["env"])`.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    Background, Bed, Finished,
    bed::{IMAGE, LIMIT},
    process,
};

/// A container that is not yet.
pub struct Run<'b> {
    bed: &'b Bed,
    id: String,
    image: Option<String>,
    flags: Vec<String>,
    limit: Duration,
}

impl<'b> Run<'b> {
    pub(crate) fn new(bed: &'b Bed) -> Self {
        Self {
            bed,
            id: format!("c{}", bed.next()),
            image: Some(IMAGE.to_owned()),
            flags: Vec::new(),
            limit: LIMIT,
        }
    }

    /// The id that it will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A name of the case's choice.
    pub fn named(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self
    }

    /// Another image than the bed's.
    pub fn image(mut self, name: &str) -> Self {
        self.image = Some(name.to_owned());
        self
    }

    /// A specification instead of an image: the root filesystem is what it names.
    pub fn spec(mut self, spec: &Value) -> Result<Self> {
        let path = self.bed.dir.join(format!("{}.json", self.id));
        fs::write(&path, serde_json::to_vec(spec)?).context("write the specification")?;
        self.image = None;
        Ok(self.flags(["--config", &path.display().to_string()]))
    }

    /// Flags of `ctr run`.
    pub fn flags<const N: usize>(mut self, flags: [&str; N]) -> Self {
        self.flags.extend(flags.map(str::to_owned));
        self
    }

    /// One more variable, as `NAME=value`.
    pub fn env(self, variable: &str) -> Self {
        self.flags(["--env", variable])
    }

    /// A bind mount; `mode` is `ro` or `rw`.
    pub fn bind(self, source: &Path, target: &str, mode: &str) -> Self {
        let mount = format!(
            "type=bind,src={},dst={target},options=rbind:{mode}",
            source.display()
        );
        self.flags(["--mount", &mount])
    }

    /// How long `ctr` may take.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The `ctr run` command. With a specification the arguments must be empty.
    pub fn command<const N: usize>(&self, mode: &[&str], arguments: [&str; N]) -> Result<Command> {
        let mut command = self.bed.ctr();
        command
            .arg("run")
            .args(mode)
            .args(&self.flags)
            .args(self.bed.pod_arguments())
            .args(self.bed.runtime_arguments()?);
        command.args(&self.image).arg(&self.id).args(arguments);
        Ok(command)
    }

    /// Runs it to its end and removes it.
    pub fn run<const N: usize>(&self, arguments: [&str; N]) -> Result<Finished> {
        process::run(&mut self.command(&["--rm"], arguments)?, None, self.limit)
    }

    /// The same, with something to read.
    pub fn run_reading<const N: usize>(
        &self,
        stdin: impl Into<Vec<u8>>,
        arguments: [&str; N],
    ) -> Result<Finished> {
        process::run(
            &mut self.command(&["--rm"], arguments)?,
            Some(stdin.into()),
            self.limit,
        )
    }

    /// Runs it beside the case, its output line by line.
    pub fn background<const N: usize>(&self, arguments: [&str; N]) -> Result<Background> {
        Background::start(&mut self.command(&["--rm"], arguments)?)
    }

    /// Starts it, without streams, and answers once it runs.
    pub fn start<const N: usize>(&self, arguments: [&str; N]) -> Result<Container<'b>> {
        let mut command = self.command(&["--detach", "--null-io"], arguments)?;
        process::run(&mut command, None, self.limit)?
            .ok()
            .context("start the container")?;
        Ok(Container {
            bed: self.bed,
            id: self.id.clone(),
        })
    }

    /// A container that does nothing until it is killed.
    pub fn sleeping(&self) -> Result<Container<'b>> {
        self.start(["sleep", "100000"])
    }
}

/// A container that runs, or ran.
pub struct Container<'b> {
    bed: &'b Bed,
    /// containerd's id of it.
    pub id: String,
}

impl<'b> Container<'b> {
    /// One that exists already.
    pub fn existing(bed: &'b Bed, id: &str) -> Self {
        Self {
            bed,
            id: id.to_owned(),
        }
    }

    /// The `ctr task exec` command.
    pub fn exec_command<const N: usize>(&self, flags: &[&str], arguments: [&str; N]) -> Command {
        let mut command = self.bed.ctr();
        command.args([
            "task",
            "exec",
            "--exec-id",
            &format!("e{}", self.bed.next()),
        ]);
        command.args(flags).arg(&self.id).args(arguments);
        command
    }

    /// Runs one more process in it, to its end.
    pub fn exec<const N: usize>(&self, arguments: [&str; N]) -> Result<Finished> {
        process::run(&mut self.exec_command(&[], arguments), None, LIMIT)
    }

    /// The same, with something to read.
    pub fn exec_reading<const N: usize>(
        &self,
        stdin: impl Into<Vec<u8>>,
        arguments: [&str; N],
    ) -> Result<Finished> {
        process::run(
            &mut self.exec_command(&[], arguments),
            Some(stdin.into()),
            LIMIT,
        )
    }

    /// The same, with flags of `ctr task exec`.
    pub fn exec_with<const N: usize>(
        &self,
        flags: &[&str],
        arguments: [&str; N],
    ) -> Result<Finished> {
        process::run(&mut self.exec_command(flags, arguments), None, LIMIT)
    }

    /// What a successful exec prints, without the last newline.
    pub fn output<const N: usize>(&self, arguments: [&str; N]) -> Result<String> {
        Ok(self.exec(arguments)?.ok()?.out().trim_end().to_owned())
    }

    /// Sends a signal to its init.
    pub fn kill(&self, signal: &str) -> Result<()> {
        self.bed
            .ctr_run(["task", "kill", "--signal", signal, &self.id])?
            .ok()?;
        Ok(())
    }

    /// RUNNING, STOPPED, PAUSED, ... as `ctr task ls` says; `None` when it has no task.
    pub fn status(&self) -> Result<Option<String>> {
        let listed = self.bed.ctr_run(["task", "ls"])?.ok()?.out();
        Ok(listed.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(self.id.as_str())).then(|| words.nth(1).map(str::to_owned))?
        }))
    }

    /// Waits until its status is the wanted one.
    pub fn becomes(&self, wanted: &str) -> Result<()> {
        let what = format!("task {} becomes {wanted}", self.id);
        process::eventually(&what, Duration::from_secs(30), || {
            Ok((self.status()?.as_deref() == Some(wanted)).then_some(()))
        })
    }

    /// Deletes the stopped task; answers its exit code.
    pub fn delete_task(&self) -> Result<i32> {
        let deleted = self
            .bed
            .ctr_run(["task", "delete", &self.id])?
            .ok()
            .context("delete the task")?;
        // `ctr` itself exits with 0 and warns about another code of the task's.
        let warning = deleted.err();
        let code = warning
            .split_once("non-zero exit code ")
            .map_or("0", |(_, rest)| rest);
        let digits: String = code.chars().take_while(char::is_ascii_digit).collect();
        digits
            .parse()
            .with_context(|| format!("no exit code in {warning:?}"))
    }

    /// Removes the container, whose task must be gone.
    pub fn remove(&self) -> Result<()> {
        self.bed
            .ctr_run(["container", "delete", &self.id])?
            .ok()
            .context("remove the container")?;
        Ok(())
    }

    /// Kills it, deletes its task and removes it.
    pub fn end(&self) -> Result<()> {
        if self.status()?.is_some() {
            // It may have ended by itself.
            let _ = self
                .bed
                .ctr_run(["task", "kill", "--signal", "KILL", &self.id])?;
            self.becomes("STOPPED")?;
            self.delete_task()?;
        }
        self.remove()
    }
}
