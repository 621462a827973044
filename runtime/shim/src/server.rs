//! The server process: one per pod, from `start` until the last container is deleted.

use std::{
    env,
    fs::{self, File},
    os::unix::net::UnixListener,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use containerd_shim_protos::ttrpc::asynchronous::{Server, transport::Listener};
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    time,
};

use crate::{
    address::Grouping,
    args::Args,
    bootstrap::{self, TTRPC_ADDRESS},
    events::Events,
    logging::Log,
    pod::Sandboxes,
    service::TaskService,
    tasks::Tasks,
};

/// Without a container for so long, the server ends: containerd was killed between `start` and Create,
/// or forgot a failed Create.
const IDLE: Duration = Duration::from_secs(30);
/// Lets the answer to Shutdown reach containerd.
const FAREWELL: Duration = Duration::from_millis(20);
/// Ending the pod takes at most this; then the process ends all the same, and its children with it.
const END: Duration = Duration::from_secs(15);
/// File writes and the like are rare: few threads, small, ended soon.
const BLOCKING_THREADS: usize = 8;
const BLOCKING_STACK: usize = 256 << 10;
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Serves until the pod ends. Standard input is the listener; the working directory is the bundle.
pub fn serve(args: &Args) -> anyhow::Result<()> {
    let bundle = env::current_dir().context("the bundle")?;
    // Fails only for a process that leads a group already, which is as good.
    let _ = nix::unistd::setsid();
    let listener = take_listener().context("standard input is not a listening socket")?;
    let pod_id = Grouping::read(&bundle)
        .map(|grouping| grouping.pod_id(&args.id).to_owned())
        .unwrap_or_else(|_| args.id.clone());
    let log = open_log(&bundle, args, &pod_id);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .build()
        .context("starting")?;
    let result = runtime.block_on(run(args, &pod_id, &bundle, listener, log));
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "the shim failed");
    }
    // Threads that are stuck in a system call must not keep the process.
    runtime.shutdown_background();
    result
}

async fn run(
    args: &Args,
    pod_id: &str,
    bundle: &Path,
    listener: UnixListener,
    log: Option<Arc<Log>>,
) -> anyhow::Result<()> {
    let events = Events::new(&args.namespace);
    let tasks = Tasks::new(
        Sandboxes,
        &args.namespace,
        pod_id,
        bundle.to_owned(),
        events,
    );
    let tasks = Arc::new(tasks);
    let sender = tasks.events();
    let address = env::var(TTRPC_ADDRESS)
        .ok()
        .filter(|address| !address.is_empty())
        .unwrap_or_else(|| format!("{}.ttrpc", args.address));
    tokio::spawn(async move { sender.send_all(&address).await });

    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let service = TaskService::new(tasks.clone(), log, args.debug);
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener).context("the listener")?)
        .register_service(service.register());
    server.start().await.context("serving")?;
    tracing::debug!(version = env!("CARGO_PKG_VERSION"), "serving");

    let mut presence = tasks.presence();
    select! {
        _ = presence.wait_for(|presence| presence.closing) => {}
        () = tasks.idle(IDLE) => tracing::warn!("no container for too long: ending"),
        _ = terminate.recv() => tracing::warn!("SIGTERM: ending the pod"),
        _ = interrupt.recv() => tracing::warn!("SIGINT: ending the pod"),
    }
    // The next container of this pod shall find no socket rather than a server that ends.
    server.stop_listen().await;
    remove_socket(&args.socket);
    if time::timeout(END, tasks.close()).await.is_err() {
        tracing::error!("the pod does not end; `delete` must");
    }
    time::sleep(FAREWELL).await;
    Ok(())
}

/// The listener that `start` put at descriptor 0, which becomes /dev/null.
fn take_listener() -> anyhow::Result<UnixListener> {
    let owned = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::net::sockopt::socket_acceptconn(&owned)
        .ok()
        .filter(|listens| *listens)
        .context("not a listener")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(UnixListener::from(owned))
}

/// Logging is no reason to fail: without a fifo the server runs silently.
fn open_log(bundle: &Path, args: &Args, pod_id: &str) -> Option<Arc<Log>> {
    let identity = [
        ("runtime", crate::RUNTIME),
        ("namespace", args.namespace.as_str()),
        ("pod", pod_id),
        ("id", args.id.as_str()),
    ];
    let log = Log::open(&bundle.join("log"), &identity).ok()?;
    if args.debug {
        log.set_level(isopod_settings::LogLevel::Debug);
    }
    // A panic's message goes where the log goes.
    if let Ok(handle) = log.handle() {
        let _ = rustix::stdio::dup2_stderr(&handle);
    }
    let log = Arc::new(log);
    tracing::subscriber::set_global_default(log.clone()).ok()?;
    Some(log)
}

fn remove_socket(socket: &Path) {
    let Some(directory) = socket.parent().filter(|directory| directory.exists()) else {
        return;
    };
    let Ok(_lock) = bootstrap::lock(directory) else {
        return;
    };
    let _ = fs::remove_file(socket);
}
