//! `start`: find the pod's server or make one, and tell containerd its socket.
//!
//! ```text
//! containerd --exec--> start: lock the socket directory
//!                        | somebody answers on the pod's socket -> print its address
//!                        | else bind it, spawn the server with the listener as its stdin
//!                        v
//!                      print the address (text, JSON or protobuf, as containerd understands)
//! ```

use std::{
    env,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;
use containerd_shim_protos::{
    bootstrap_api::{BootstrapParams, BootstrapResult},
    protobuf::Message,
};
use rustix::fs::{FlockOperation, flock};

use crate::{
    address::{self, Grouping},
    args::Args,
    bundle::{self, ServerRecord},
    options::Source,
};

/// containerd's events service, in the server's environment.
pub const TTRPC_ADDRESS: &str = "TTRPC_ADDRESS";
/// The directory of sockets, from containerd 2.3's environment or its parameters.
const SOCKET_DIR_VARIABLE: &str = "SHIM_SOCKET_DIR";
/// containerd 1.7 to 2.2 set it and understand a JSON answer.
const MAX_VERSION: &str = "MAX_SHIM_VERSION";
/// More than this on standard input is no runtime option.
const MAX_INPUT: u64 = 4 << 20;

/// How containerd wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// The address alone: containerd 1.6.
    Text,
    /// `{"version":2,"address":...,"protocol":"ttrpc"}`.
    Json,
    /// `BootstrapResult`, to a caller that sent `BootstrapParams`.
    Protobuf,
}

/// What standard input said.
#[derive(Debug, PartialEq, Eq)]
struct Input {
    dialect: Dialect,
    ttrpc_address: Option<String>,
    socket_dir: Option<PathBuf>,
    debug: bool,
    options: Source,
}

/// Runs `start` in the bundle (the working directory) and prints the answer.
pub fn start(args: &Args) -> anyhow::Result<()> {
    let bundle = env::current_dir().context("the bundle")?;
    let mut bytes = Vec::new();
    io::stdin()
        .take(MAX_INPUT)
        .read_to_end(&mut bytes)
        .context("reading runtime options")?;
    let input = decode(&bytes, args, env::var_os(MAX_VERSION).is_some())?;
    // A mistake in the settings is better reported here than by a server that must end again.
    input.options.load()?;

    let grouping = Grouping::read(&bundle)
        .with_context(|| format!("reading {}", bundle.join("config.json").display()))?;
    let directory = input
        .socket_dir
        .clone()
        .or_else(|| env::var_os(SOCKET_DIR_VARIABLE).map(PathBuf::from))
        .filter(|path| !path.as_os_str().is_empty())
        .unwrap_or_else(|| address::SOCKET_DIR.into());
    let name = address::socket_name(&args.address, &args.namespace, grouping.pod_id(&args.id));
    let socket = directory.join(name);
    let address = format!("unix://{}", socket.display());

    let lock = lock(&directory)?;
    if UnixStream::connect(&socket).is_err() {
        let listener = bind(&socket)?;
        bundle::write_address(&bundle, &address).context("writing the address file")?;
        let pid = spawn(args, &input, &socket, listener).inspect_err(|_| {
            let _ = fs::remove_file(&socket);
        })?;
        ServerRecord::of(pid)
            .and_then(|record| record.write(&bundle))
            .context("recording the server process")?;
        raise_oom_score(pid);
    } else {
        bundle::write_address(&bundle, &address).context("writing the address file")?;
    }
    drop(lock);

    io::stdout()
        .write_all(&answer(input.dialect, &address)?)
        .context("printing the address")
}

/// Excludes every other start and every ending server until the file is dropped: between "nobody
/// answers" and "bound" no socket may appear or vanish.
pub fn lock(directory: &Path) -> anyhow::Result<File> {
    if !directory.exists() {
        fs::create_dir_all(directory)
            .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o700)))
            .with_context(|| format!("making {}", directory.display()))?;
    }
    let file = File::open(directory).with_context(|| directory.display().to_string())?;
    flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("locking {}", directory.display()))?;
    Ok(file)
}

/// Binds the socket, over what a killed server left.
fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context(format!("removing the stale {}", socket.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("binding {}", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", socket.display()))?;
    Ok(listener)
}

/// Starts the server; it makes a session of its own.
fn spawn(args: &Args, input: &Input, socket: &Path, listener: UnixListener) -> anyhow::Result<u32> {
    let program = env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &args.namespace, "-id", &args.id])
        .args(["-address", &args.address, "-socket"])
        .arg(socket)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // One arena: glibc gives each thread its own 64 MiB of address space and never shares what
        // they free.
        .env("MALLOC_ARENA_MAX", "1");
    if args.debug || input.debug {
        command.arg("-debug");
    }
    if let Some(address) = &input.ttrpc_address {
        command.env(TTRPC_ADDRESS, address);
    }
    Ok(command.spawn().context("starting the server")?.id())
}

/// The kernel shall sooner kill a shim than containerd. Raising one's score needs no privilege; where
/// it fails the shim runs on as it is.
fn raise_oom_score(pid: u32) {
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let score = fs::read_to_string(format!("/proc/{parent}/oom_score_adj"));
    let score: i32 = score.ok().and_then(|s| s.trim().parse().ok()).unwrap_or(0);
    let raised = score.saturating_add(1).min(1000);
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), raised.to_string());
}

/// `BootstrapParams` and an `Any` share field numbers, and protobuf decodes one as the other: the
/// identity on the command line tells them apart.
fn decode(bytes: &[u8], args: &Args, json: bool) -> anyhow::Result<Input> {
    if let Ok(params) = BootstrapParams::parse_from_bytes(bytes)
        && params.instance_id == args.id
        && params.namespace == args.namespace
    {
        let mut options = Source::Default;
        for extension in &params.extensions {
            let value = extension.value.as_ref();
            // Extensions of other kinds are for those who know them.
            if value.is_some_and(|any| any.type_url.ends_with("Options")) {
                options = Source::from_any(value)?;
            }
        }
        return Ok(Input {
            dialect: Dialect::Protobuf,
            ttrpc_address: Some(params.containerd_ttrpc_address).filter(|a| !a.is_empty()),
            socket_dir: params
                .socket_dir
                .filter(|d| !d.is_empty())
                .map(PathBuf::from),
            // Below LOG_LEVEL_INFO.
            debug: params.log_level.value() < 0,
            options,
        });
    }
    Ok(Input {
        dialect: if json { Dialect::Json } else { Dialect::Text },
        ttrpc_address: None,
        socket_dir: None,
        debug: false,
        options: Source::from_bytes(bytes)?,
    })
}

/// The task API of all three is version 2 on the wire; 3 has the same messages under another name,
/// and the server answers to both.
fn answer(dialect: Dialect, address: &str) -> anyhow::Result<Vec<u8>> {
    Ok(match dialect {
        Dialect::Text => address.as_bytes().to_vec(),
        Dialect::Json => serde_json::to_vec(&serde_json::json!({
            "version": 2,
            "address": address,
            "protocol": "ttrpc",
        }))?,
        Dialect::Protobuf => BootstrapResult {
            version: 3,
            address: address.to_owned(),
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        }
        .write_to_bytes()?,
    })
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
