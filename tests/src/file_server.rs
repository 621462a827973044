//! `isopod-fs` by itself, for a front end of the case's own: jailed as in a pod.

use std::{
    fs, io,
    io::{BufRead as _, BufReader},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use command_fds::{CommandFdExt as _, FdMapping};
use isopod_config::FileServerConfig;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Background, Bed, check_eq};

/// A file server and the directory that it serves; both end with this.
pub struct FileServer {
    /// Where it listens.
    pub socket: PathBuf,
    /// An empty directory in memory.
    pub shared: PathBuf,
    process: Option<Background>,
    /// Held: its end is the server's.
    _lifeline: io::PipeWriter,
}

impl FileServer {
    /// Starts it, and waits until its walls stand. Its files are called `name` in the bed's directory.
    ///
    /// # Errors
    /// It did not start, or one of its walls does not stand.
    pub fn start(bed: &Bed, name: &str) -> Result<Self> {
        let socket = bed.dir.join(format!("{name}.fs"));
        let shared = bed.dir.join(format!("{name}.shared"));
        let listener = UnixListener::bind(&socket)?;
        let (lifeline_end, lifeline) = io::pipe()?;
        let (ready, ready_end) = io::pipe()?;
        mount_memory(&shared)?;
        let mut server = Self {
            socket,
            shared,
            process: None,
            _lifeline: lifeline,
        };
        let config = FileServerConfig {
            name: name.to_owned(),
            shared_dir: server.shared.clone(),
            fs_listener: 10,
            request_queues: 1,
            queue_size: 128,
            vsock: None,
            lifeline: 11,
            ready: 12,
        };
        // It is PID 1 of a PID namespace, which only its parent can make.
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--"])
            .arg(bed.machine.bin_dir.join("isopod-fs"));
        let descriptors: [OwnedFd; 3] = [listener.into(), lifeline_end.into(), ready_end.into()];
        let mapped = (10..).zip(descriptors);
        let mapped = mapped.map(|(child_fd, parent_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
        command.fd_mappings(mapped.collect())?;
        let mut process = Background::start(&mut command)?;
        // With it go this process's own ends: a server that ends is not waited for.
        drop(command);
        process.write(&serde_json::to_vec(&config)?)?;
        process.close_stdin();
        let mut line = String::new();
        BufReader::new(ready).read_line(&mut line)?;
        check_eq!(line, "ready\n", "{}", process.lines().join("\n"));
        server.process = Some(process);
        Ok(server)
    }
}

fn mount_memory(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    let (tmpfs, none): (_, Option<&str>) = (Some("tmpfs"), None);
    mount(tmpfs, dir, tmpfs, MsFlags::empty(), none).context("mount the shared directory")
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.process = None;
        let _ = umount2(&self.shared, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.shared);
        let _ = fs::remove_file(&self.socket);
    }
}
