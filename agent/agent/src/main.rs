//! PID 1 of the guest: boots it, reaps its processes, serves the host.
//!
//! ```text
//! kernel -> main -> boot (mounts, loopback) -> listen (vsock) -> tell the host -> serve
//!                                                                                  |
//!   service: one call each -> pod: containers and processes -> isopod-container    |
//!   reaper: every exit  ----> pod ----> events ----> the host's long poll <--------+
//! ```
//! One thread, but for what blocks. With [`isopod_container::INIT_NAME`] as argv\[0\] the same binary is
//! a container's process in the making. Nobody imports it.
#![deny(unsafe_code)]
// See `sys::main`.
#![cfg_attr(not(test), no_main)]

mod boot;
mod clock;
mod debug;
mod events;
mod fault;
mod lifecycle;
mod listen;
mod log;
mod oom;
mod pipes;
mod pod;
mod process;
mod reaper;
mod run;
#[cfg(feature = "selftest")]
mod selftest;
mod service;
mod shutdown;
mod size;
mod stdio;
mod streams;
mod sys;

use std::{ffi::OsStr, path::PathBuf, sync::Arc};

/// Where the agent runs: what differs between a guest and a test.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Root of the cgroup v2 tree.
    pub cgroups: PathBuf,
    /// Empty directory on which root filesystems are put together.
    pub anchor: PathBuf,
    /// Where the kernel shows processors and memory.
    pub system: PathBuf,
    /// `None` in a guest (vsock); in a test the directory of the sockets.
    pub sockets: Option<PathBuf>,
}

/// The program, whoever calls it.
#[cfg_attr(test, allow(dead_code))]
fn start() -> u8 {
    let mut args = std::env::args_os();
    if args.next().as_deref() == Some(OsStr::new(isopod_container::INIT_NAME)) {
        isopod_container::run_init();
    }
    if let Err(error) = boot::open_standard_streams() {
        // No log can be reached either; the exit code is in the kernel's panic message.
        return u8::try_from(error.raw_os_error().unwrap_or(1)).unwrap_or(1);
    }
    log::end_on_panic();
    let place = match place(args) {
        Ok(place) => place,
        Err(reason) => {
            log::error(&reason);
            return 1;
        }
    };
    match serve(place) {
        Ok(()) => 0,
        Err(error) => {
            // PID 1 that ends is a kernel panic: the VM ends, and the host shows this line.
            log::error(&format!("cannot serve: {error}"));
            1
        }
    }
}

#[cfg(feature = "testing")]
fn place(mut args: impl Iterator<Item = std::ffi::OsString>) -> Result<Place, String> {
    match (args.next(), args.next(), args.next()) {
        (Some(flag), Some(directory), Some(cgroups)) if flag == "--test-listen" => {
            let directory = PathBuf::from(directory);
            let anchor = directory.join("anchor");
            std::fs::create_dir_all(&anchor).map_err(|e| format!("make {anchor:?}: {e}"))?;
            Ok(Place {
                cgroups: cgroups.into(),
                anchor,
                system: directory.join("system"),
                sockets: Some(directory),
            })
        }
        _ => Err("usage: isopod-agent --test-listen DIRECTORY CGROUPS".to_owned()),
    }
}

#[cfg(not(feature = "testing"))]
fn place(_: impl Iterator<Item = std::ffi::OsString>) -> Result<Place, String> {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return Err("this is the init of an isopod guest and runs as process 1 only".to_owned());
    }
    Ok(Place {
        cgroups: boot::CGROUPS.into(),
        anchor: boot::ANCHOR.into(),
        system: "/sys/devices/system".into(),
        sockets: None,
    })
}

/// What ends the agent before it serves, and with it the VM.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error("start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("watch for lack of memory: {0}")]
    Watch(#[source] std::io::Error),
    #[error("listen: {0}")]
    Listen(#[source] std::io::Error),
    #[error("wait for child processes: {0}")]
    Reap(#[source] std::io::Error),
    #[error("serve calls: {0}")]
    Serve(#[source] ttrpc::Error),
    #[error("tell the host: {0}")]
    Tell(#[source] std::io::Error),
}

fn serve(place: Place) -> Result<(), ServeError> {
    let began = clock::since_boot();
    if place.sockets.is_none() {
        boot::boot()?;
        #[cfg(feature = "selftest")]
        if let Some(scale) = selftest::wanted() {
            selftest::run(scale);
            while selftest::rests() {
                std::thread::park();
            }
            shutdown::reset();
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        let pod = Arc::new(pod::Pod::new(&place).map_err(ServeError::Watch)?);
        let reaper = reaper::Reaper::new().map_err(ServeError::Reap)?;
        let calls = listen::calls(&place).map_err(ServeError::Listen)?;
        let stdio = listen::stdio(&place).map_err(ServeError::Listen)?;
        tokio::spawn(streams::accept(stdio, Arc::clone(&pod)));
        if place.sockets.is_none() {
            debug::serve_port(&pod);
        }
        let watched = Arc::clone(&pod);
        tokio::spawn(async move {
            if let Err(e) = watched.oom.run(&watched).await {
                log::error(&format!("watch for lack of memory: {e}"));
            }
        });
        let service = service::Service::new(Arc::clone(&pod), place.clone(), began);
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(calls)
            .register_service(isopod_protocol::agent_ttrpc::create_agent(Arc::new(
                service,
            )));
        server.start().await.map_err(ServeError::Serve)?;
        listen::tell_ready(&place).await.map_err(ServeError::Tell)?;
        reaper.run(&pod).await;
        Ok(())
    })
}
