//! QEMU's disk device in a process of its own, `qemu-storage-daemon`, behind the same driver: our front end
//! only introduces the two, requests go straight from the driver's rings to the daemon and back.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use isopod_devices::vhost_user::{PATIENCE, VhostUser, VhostUserConfig, Watchdog};
use isopod_virtio::{DeviceType, testing::GuestRam};

use crate::disk::{RAM, Rig, filled};

const PROGRAM: &str = "qemu-storage-daemon";

/// The daemon and its disk; both end with this.
pub struct Peer {
    pub rig: Rig,
    daemon: Child,
    _directory: tempfile::TempDir,
    _watchdog: Watchdog,
}

impl Peer {
    /// A daemon that serves a file in memory by `aio` (`threads`, `io_uring`) in a thread of its own, which
    /// is how it is at its quickest; `None`, with a word why, where it is not installed.
    pub fn start(aio: &str) -> Option<Self> {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let (disk, socket) = (
            directory.path().join("disk"),
            directory.path().join("socket"),
        );
        let file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .open(&disk);
        filled(file.expect("a file"));
        let node = format!(
            "driver=file,node-name=disk,filename={},aio={aio}",
            disk.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=thread,\
             addr.type=unix,addr.path={}",
            socket.display()
        );
        let daemon = Command::new(PROGRAM)
            .args(["--object", "iothread,id=thread"])
            .args(["--blockdev", &node, "--export", &export])
            .stdin(Stdio::null())
            .spawn();
        let daemon = match daemon {
            Ok(daemon) => daemon,
            Err(error) => {
                eprintln!("no comparison with {PROGRAM}: {error}");
                return None;
            }
        };
        let watchdog = Watchdog::start(PATIENCE, || ()).expect("a thread");
        let config = VhostUserConfig {
            device_type: DeviceType::Block,
            features: 0,
            // Nobody reads it: the driver knows the disk.
            config: [0; 60].as_slice().into(),
            queue_sizes: [256].as_slice().into(),
        };
        let device = VhostUser::new(config, connect(&socket), &watchdog);
        Some(Self {
            rig: Rig::of(GuestRam::shared(RAM), device.expect("a back end")),
            daemon,
            _directory: directory,
            _watchdog: watchdog,
        })
    }
}

fn connect(socket: &Path) -> UnixStream {
    let began = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(
                began.elapsed() < Duration::from_secs(20),
                "{PROGRAM} does not listen: {error}"
            ),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
