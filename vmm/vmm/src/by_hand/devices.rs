//! Devices as the command line says them.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use anyhow::{Context, bail};
use isopod_config::FsConfig;
use isopod_devices::{
    blk::{BlkConfig, Disk, Engine},
    console::Peer,
    net::NetConfig,
    rate::RateLimit,
    vsock::{VsockConfig, VsockDevice},
};

use crate::parts::{DiskSlot, NetSlot, Served, Vsock};

/// Of the vsock device: the first that a guest may have.
const GUEST_CID: u32 = 3;

/// A second writer of where the kernel's messages go. It may wait for a terminal, as it is not jailed.
pub fn log(console: &Path) -> anyhow::Result<Peer> {
    let output: OwnedFd = if console.as_os_str() == "-" {
        io::stdout().as_fd().try_clone_to_owned()?
    } else {
        let opened = File::options().append(true).open(console);
        opened
            .with_context(|| console.display().to_string())?
            .into()
    };
    Ok(Peer {
        output,
        input: None,
        lossy: true,
    })
}

/// `PATH[,ro][,ring]`
pub fn slot(text: &str) -> anyhow::Result<DiskSlot> {
    let mut words = text.split(',');
    let path = words.next().unwrap_or_default();
    let mut config = BlkConfig::default();
    for word in words {
        match word {
            "ro" => config.read_only = true,
            "ring" => config.engine = Engine::SideBySide,
            other => bail!("--disk {text}: {other:?} is neither \"ro\" nor \"ring\""),
        }
    }
    let name = Path::new(path).file_name().unwrap_or_default();
    config.serial = name
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii)
        .take(20)
        .collect();
    let mut options = File::options();
    let file = options.read(true).write(!config.read_only).open(path);
    let disk = Disk::new(file.with_context(|| path.to_owned())?)?;
    Ok(DiskSlot {
        config,
        disk: Some(disk),
    })
}

/// A card at a tap device.
pub fn card(number: u8, name: &str) -> anyhow::Result<NetSlot> {
    let tap = isopod_memory::tap::open(name).with_context(|| format!("--tap {name}"))?;
    Ok(NetSlot {
        config: NetConfig {
            // Locally administered.
            mac: [2, 0, 0, 0, 0, number],
            mtu: 1500,
            pairs: 1,
            receive: RateLimit::default(),
            send: RateLimit::default(),
        },
        taps: vec![tap],
    })
}

/// `SOCKET[,TAG]`
pub fn fs(text: &str) -> anyhow::Result<Served<FsConfig>> {
    let (socket, tag) = text.split_once(',').unwrap_or((text, "shared"));
    Ok(Served {
        config: FsConfig {
            tag: tag.to_owned(),
            request_queues: 1,
            queue_size: 128,
        },
        connection: UnixStream::connect(socket).with_context(|| format!("--fs {socket}"))?,
    })
}

/// A socket device, and the listening socket at this path.
pub fn vsock(socket: &Path) -> anyhow::Result<Vsock> {
    let listener = UnixListener::bind(socket);
    let listener = listener.with_context(|| format!("--vsock {}", socket.display()))?;
    let config = VsockConfig {
        guest_cid: GUEST_CID,
        connect_dir: socket.parent().unwrap_or(Path::new(".")).to_owned(),
    };
    Ok(Vsock::Here(Box::new(VsockDevice::new(config, listener)?)))
}
