//! From configuration to serving, and when to end.

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    sync::{Arc, Mutex, mpsc},
    thread,
};

use isopod_config::{FileServerConfig, VsockBackendConfig};
use isopod_devices::vsock::{VsockConfig, VsockDevice, VsockError};
use isopod_jail::{inherited, lifeline, mounts, violation};
use isopod_memory::{GuestMemory, GuestMemoryHandle};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};

use crate::{
    filter,
    queue::FsBackend,
    share::{self, Share},
    vsock::VsockBackend,
    walls,
};

/// Why the process ended when nobody wanted it to.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A configuration value out of range.
    #[error("{field} = {value} is out of range ({allowed})")]
    Config {
        /// Which.
        field: &'static str,
        /// What it was.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// A wall could not be put up, or a descriptor is not what was announced.
    #[error(transparent)]
    Jail(#[from] isopod_jail::Error),
    /// The shared directory could not be opened.
    #[error("cannot serve the shared directory")]
    Share(#[source] share::ShareError),
    /// The vsock device could not be made.
    #[error("cannot make the vsock device")]
    Vsock(#[source] VsockError),
    /// A system call on the way.
    #[error("cannot {act}")]
    System {
        /// What was attempted.
        act: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A front end broke the vhost-user protocol, or could not be served.
    #[error("the {device} front end failed: {reason}")]
    FrontEnd {
        /// Which device.
        device: &'static str,
        /// Its library's words.
        reason: String,
    },
}

fn system(act: &'static str) -> impl FnOnce(std::io::Error) -> ProcessError {
    move |source| ProcessError::System { act, source }
}

/// Runs one file server to its end.
///
/// # Errors
/// What kept it from serving, or a front end that misbehaved. A front end or an owner that leaves is
/// no error.
pub fn run(config: FileServerConfig) -> Result<(), ProcessError> {
    check_queues(&config)?;
    let lifeline = inherited::claim(config.lifeline)?;
    let mut ready = File::from(inherited::claim(config.ready)?);
    let fs_listener = UnixListener::from(inherited::claim(config.fs_listener)?);
    let vsock = config.vsock.as_ref().map(open_vsock).transpose()?;
    let proc = mounts::own_descriptors()?;

    walls::enter(&config.shared_dir)?;
    // The death signal is armed now; an owner that ended before is seen here.
    lifeline::check(&lifeline)?;
    let descriptors = walls::descriptors_for_inodes();
    let share = Share::new("/".as_ref(), proc, descriptors).map_err(ProcessError::Share)?;
    let (ended, ends) = mpsc::channel();
    let lifeline_ended = ended.clone();
    spawn("lifeline", move || {
        let end = lifeline::wait(&lifeline).map_err(ProcessError::from);
        let _ = lifeline_ended.send(end.map(|()| "the owner is gone"));
    })?;
    if let Some(vsock) = vsock {
        serve_vsock(vsock, ended.clone())?;
    }
    let memory = GuestMemoryHandle::new(GuestMemory::new());
    let backend = FsBackend::new(share, config.request_queues, memory.clone());
    let daemon = daemon("virtio-fs", Arc::new(backend), memory)?;
    spawn("fs-frontend", move || {
        let end = converse("virtio-fs", daemon, fs_listener);
        let _ = ended.send(end.map(|()| "the virtio-fs front end disconnected"));
    })?;
    violation::report(format!("isopod-fs: pod {}: ", config.name))?;
    filter::install()?;
    ready
        .write_all(b"ready\n")
        .map_err(system("report readiness"))?;
    drop(ready);

    // The first end is the end: a VM does not come back, and workers are not waited for, because
    // one may hang in a request on a dead network filesystem.
    let end = ends.recv().unwrap_or(Ok("every thread ended"))?;
    tracing::info!("ending: {end}");
    Ok(())
}

fn check_queues(config: &FileServerConfig) -> Result<(), ProcessError> {
    // One thread per queue, and the back-end library counts queues by the bits of a word.
    if !(1..=63).contains(&config.request_queues) {
        return Err(ProcessError::Config {
            field: "request_queues",
            value: config.request_queues.into(),
            allowed: "1 to 63",
        });
    }
    if !config.queue_size.is_power_of_two() || !(16..=1024).contains(&config.queue_size) {
        return Err(ProcessError::Config {
            field: "queue_size",
            value: config.queue_size.into(),
            allowed: "a power of two from 16 to 1024",
        });
    }
    Ok(())
}

/// What the vsock device needs from outside the jail.
struct OpenVsock {
    listener: UnixListener,
    connect_dir: OwnedFd,
    device: VsockDevice,
}

fn open_vsock(config: &VsockBackendConfig) -> Result<OpenVsock, ProcessError> {
    let host_listener = UnixListener::from(inherited::claim(config.host_listener)?);
    // Of its own mount, so that `..` leads nowhere; the working directory of the device's thread.
    let connect_dir = mounts::detached_directory(&config.connect_dir)?;
    let device = VsockConfig {
        guest_cid: config.guest_cid,
        connect_dir: ".".into(),
    };
    Ok(OpenVsock {
        listener: inherited::claim(config.listener)?.into(),
        connect_dir,
        device: VsockDevice::new(device, host_listener).map_err(ProcessError::Vsock)?,
    })
}

/// The device's threads are made by a thread that has left the process's working directory for
/// `connect_dir`: they share its own.
fn serve_vsock(
    vsock: OpenVsock,
    ended: mpsc::Sender<Result<&'static str, ProcessError>>,
) -> Result<(), ProcessError> {
    let OpenVsock {
        listener,
        connect_dir,
        device,
    } = vsock;
    let (started, start) = mpsc::channel();
    spawn("vsock-frontend", move || {
        match start_vsock(&connect_dir, device) {
            Err(error) => {
                let _ = started.send(Err(error));
            }
            Ok(daemon) => {
                let _ = started.send(Ok(()));
                let end = converse("vsock", daemon, listener);
                let _ = ended.send(end.map(|()| "the vsock front end disconnected"));
            }
        }
    })?;
    start.recv().unwrap_or_else(|_| {
        Err(ProcessError::FrontEnd {
            device: "vsock",
            reason: "its thread ended".into(),
        })
    })
}

fn start_vsock(
    connect_dir: &OwnedFd,
    device: VsockDevice,
) -> Result<VhostUserDaemon<Arc<Mutex<VsockBackend>>>, ProcessError> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
        .map_err(|e| system("leave the shared working directory")(e.into()))?;
    rustix::process::fchdir(connect_dir)
        .map_err(|e| system("enter the vsock directory")(e.into()))?;
    let device_fd = device
        .as_fd()
        .try_clone_to_owned()
        .map_err(system("watch the vsock device"))?;
    let memory = GuestMemoryHandle::new(GuestMemory::new());
    let backend = VsockBackend::new(device, memory.clone());
    let daemon = daemon("vsock", Arc::new(Mutex::new(backend)), memory)?;
    for worker in daemon.get_epoll_handlers() {
        VsockBackend::watch(&worker, &device_fd).map_err(system("watch the vsock device"))?;
    }
    // The registration is of the open file, which the device keeps.
    Ok(daemon)
}

fn daemon<B>(
    device: &'static str,
    backend: B,
    memory: GuestMemoryHandle,
) -> Result<VhostUserDaemon<B>, ProcessError>
where
    B: VhostUserBackend<Bitmap = isopod_memory::DirtyBitmap> + Clone + 'static,
    B::Vring: Clone + Send + Sync,
{
    VhostUserDaemon::new(device.to_owned(), backend, memory).map_err(|e| ProcessError::FrontEnd {
        device,
        reason: e.to_string(),
    })
}

/// Accepts one front end and serves it until it leaves.
fn converse<B>(
    device: &'static str,
    mut daemon: VhostUserDaemon<B>,
    listener: UnixListener,
) -> Result<(), ProcessError>
where
    B: VhostUserBackend<Bitmap = isopod_memory::DirtyBitmap> + Clone + 'static,
    B::Vring: Clone + Send + Sync,
{
    use vhost_user_backend::Error;
    let failed = |e: Error| ProcessError::FrontEnd {
        device,
        reason: e.to_string(),
    };
    daemon
        .start(&mut Listener::from(listener))
        .map_err(failed)?;
    tracing::info!("{device} front end connected");
    let end = daemon.wait();
    // Dropping the daemon joins its workers, of which one may hang in a request.
    std::mem::forget(daemon);
    match end {
        Ok(())
        | Err(Error::HandleRequest(
            VhostUserError::Disconnected | VhostUserError::SocketBroken(_),
        )) => Ok(()),
        Err(e) => Err(failed(e)),
    }
}

fn spawn(name: &str, job: impl FnOnce() + Send + 'static) -> Result<(), ProcessError> {
    thread::Builder::new()
        .name(name.into())
        .spawn(job)
        .map(drop)
        .map_err(system("start a thread"))
}
