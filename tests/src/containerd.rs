//! A containerd of one's own: configuration, start, death.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{Machine, process};

/// A running containerd. Killed when dropped; its shims go on, as they should.
pub struct Containerd {
    machine: Machine,
    dir: PathBuf,
    child: Option<Child>,
}

impl Containerd {
    /// Starts one whose root, state, socket and log lie in `dir`, and waits until it answers.
    pub fn start(machine: &Machine, dir: &Path) -> Result<Self> {
        let mut containerd = Self {
            machine: machine.clone(),
            dir: dir.to_owned(),
            child: None,
        };
        fs::write(containerd.config(), configuration(dir))
            .context("write containerd's configuration")?;
        containerd.begin()?;
        Ok(containerd)
    }

    /// The socket that clients use.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// Its log, with the shims' logs in it.
    pub fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    /// Where it keeps a container's bundle.
    pub fn bundle(&self, namespace: &str, id: &str) -> PathBuf {
        let bundles = self.dir.join("state/io.containerd.runtime.v2.task");
        bundles.join(namespace).join(id)
    }

    /// Its process id; 0 while it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// `ctr` aimed at it.
    pub fn ctr(&self, namespace: &str) -> Command {
        let program = self.machine.program("ctr").unwrap_or_else(|| "ctr".into());
        let mut command = Command::new(program);
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", namespace]);
        command.env("PATH", self.machine.path_variable());
        command
    }

    /// Starts it (again).
    pub fn begin(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .context("open the log")?;
        let program = self
            .machine
            .program("containerd")
            .context("find containerd")?;
        let child = Command::new(program)
            .arg("--config")
            .arg(self.config())
            .env("PATH", self.machine.path_variable())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        self.child = Some(child);
        process::eventually("containerd answers", Duration::from_secs(20), || {
            let mut version = self.ctr("default");
            version.arg("version");
            let answer = process::run(&mut version, None, Duration::from_secs(10))?;
            Ok((answer.code == 0).then_some(()))
        })
    }

    /// Ends it with a signal: 15 lets it close its files, 9 does not.
    pub fn end(&mut self, signal: nix::sys::signal::Signal) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().try_into()?), signal)?;
            process::eventually("containerd ends", Duration::from_secs(15), || {
                Ok(child.try_wait()?)
            })?;
        }
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.dir.join("containerd.toml")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Only what a test needs: the rest costs start-up time or wants what a test machine lacks.
fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/disk/containerd"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = "{dir}/c.sock"

[debug]
level = "debug"
"#
    )
}
