//! One monitor of a pod: from configuration to its end.
//!
//! ```text
//! read configuration ─ claim descriptors ─ jail ─ lifeline ─ machine (kernel loaded, threads confined)
//!    ─ own filter ─ serve the control socket ── guest ends, owner asks or is gone ──> exit
//! ```

use std::{
    io::{self, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures::StreamExt as _;
use isopod_config::MonitorConfig;
use isopod_control::{monitor_ttrpc::create_monitor, parcel::Parcels};
use isopod_jail::{inherited, lifeline, seccomp::Filter, violation};
use isopod_machine::{End, Prepare};
use isopod_vmm::{filter::Filters, walls};
use tokio::sync::Notify;

use crate::{
    assembly::{Prepares, assemble},
    claim,
    control::Control,
    snapshot::Files,
};

/// A configuration is some hundred bytes; a caller that sends more is not the sandbox.
const CONFIG_LEN: u64 = 64 << 10;
/// From the answer to the end: the client reads it.
const FAREWELL: Duration = Duration::from_millis(50);

/// Runs one monitor to its end.
pub fn run() -> anyhow::Result<()> {
    let start = Instant::now();
    let mut json = Vec::new();
    io::stdin()
        .lock()
        .take(CONFIG_LEN)
        .read_to_end(&mut json)
        .context("read stdin")?;
    let config: MonitorConfig =
        serde_json::from_slice(&json).context("understand the configuration on stdin")?;
    isopod_jail::log::start("isopod-vmm", &config.name);

    let lifeline = inherited::claim(config.descriptors.lifeline)?;
    let control = UnixStream::from(inherited::claim(config.descriptors.control)?);
    control
        .set_nonblocking(true)
        .context("the control socket")?;
    let parcels = config.descriptors.parcels.map(inherited::claim);
    let parcels = parcels.transpose()?.map(Parcels::new);
    let parts = claim::parts(&config)?;
    let files = Files::claim(config.descriptors.snapshot)?;
    walls::enter(&config)?;
    // The death signal is armed now; an owner that ended before is seen here.
    lifeline::check(&lifeline)?;

    violation::report(format!("isopod-vmm: pod {}: ", config.name))?;
    let filters = Filters::compile(files.is_some())?;
    watch(lifeline, filters.lifeline.clone())?;
    let prepares = Prepares {
        vcpu: confine(filters.vcpu.clone()),
        device: {
            let filters = filters.clone();
            Box::new(move |kind| confine(filters.device(kind)))
        },
        watchdog: confine(filters.watchdog.clone()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("start the control runtime")?;
    let ended = Arc::new(Notify::new());
    let on_end = {
        let ended = Arc::clone(&ended);
        Box::new(move || ended.notify_one())
    };
    let (machine, slots) = assemble(parts, &prepares, on_end)?;
    let machine = Arc::new(Control::new(machine, slots, parcels, start, files));
    filters.main.install()?;
    runtime.block_on(serve(control, &machine, &ended))?;

    let (told, outcome) = match machine.stop()? {
        End::Reset => ("the guest reset", Ok(())),
        End::Stopped => ("the owner shut it down", Ok(())),
        End::Failed(error) => ("the guest cannot go on", Err(error)),
    };
    tracing::info!("ending: {told}");
    // Devices' threads may wait in a request for a process that does not answer: they go with this one.
    if let Err(error) = outcome {
        tracing::error!("{error}");
        std::process::exit(1);
    }
    std::process::exit(0)
}

/// Serves the one client until the guest ends or the client asks for the end.
async fn serve(control: UnixStream, machine: &Arc<Control>, ended: &Notify) -> anyhow::Result<()> {
    let socket = tokio::net::UnixStream::from_std(control).context("the control socket")?;
    let one = futures::stream::once(async { Ok(socket) }).chain(futures::stream::pending());
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(ttrpc::r#async::transport::Listener::new(one))
        .register_service(create_monitor(Arc::clone(machine) as _));
    server.start().await.context("serve the control socket")?;
    tokio::select! {
        () = ended.notified() => {}
        () = machine.shut_down.notified() => tokio::time::sleep(FAREWELL).await,
    }
    Ok(())
}

fn confine(filter: Filter) -> Prepare {
    Arc::new(move || filter.install().map_err(io::Error::other))
}

/// Ends the process when the owner is gone.
fn watch(lifeline: OwnedFd, filter: Filter) -> anyhow::Result<()> {
    let job = move || {
        if let Err(error) = filter.install() {
            tracing::error!("{error}");
            std::process::exit(1);
        }
        if let Err(error) = lifeline::wait(&lifeline) {
            tracing::error!("{error}");
        }
        std::process::exit(0);
    };
    std::thread::Builder::new()
        .name("lifeline".into())
        .spawn(job)
        .context("start a thread")?;
    Ok(())
}
