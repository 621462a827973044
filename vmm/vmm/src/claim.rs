//! From a configuration to the parts of a machine: taking possession of what was inherited, before the
//! jail.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use anyhow::{Context, bail};
use isopod_config::{
    DiskSlotConfig, MonitorConfig, NetSlotConfig, RateConfig, SlotsConfig, VsockHostDescriptors,
};
use isopod_devices::{
    blk::{BlkConfig, Disk, Engine},
    console::Peer,
    net::NetConfig,
    rate::RateLimit,
    vsock::VsockDevice,
};
use isopod_jail::inherited;
use isopod_machine::Host;

use crate::{
    parts::{Begin, DiskSlot, Messages, NetSlot, Parts, Served, Vsock},
    snapshot::Saved,
};

/// Takes what was inherited and makes of it what needs a system call that no thread may make later.
pub fn parts(config: &MonitorConfig) -> anyhow::Result<Parts> {
    let descriptors = &config.descriptors;
    let SlotsConfig {
        console,
        balloon,
        hotplug_mib,
        disks,
        nets,
    } = &config.slots;
    let fs = match (&config.fs, descriptors.fs) {
        (Some(config), Some(fd)) => Some(Served {
            config: config.clone(),
            connection: UnixStream::from(inherited::claim(fd)?),
        }),
        (None, None) => None,
        _ => bail!("descriptors.fs must be there if and only if fs is"),
    };
    let vsock = match (&config.vsock, descriptors.vsock, &descriptors.vsock_host) {
        (Some(config), Some(fd), None) => Some(Vsock::Served(Served {
            config: *config,
            connection: UnixStream::from(inherited::claim(fd)?),
        })),
        (Some(config), None, Some(host)) => {
            Some(Vsock::Here(Box::new(vsock(config.guest_cid, host)?)))
        }
        (None, None, None) => None,
        _ => bail!("one of descriptors.vsock and vsock_host must be there if and only if vsock is"),
    };
    let disk = |(index, slot)| disk(slot).with_context(|| format!("slots.disks[{index}]"));
    let net = |(index, slot)| net(slot).with_context(|| format!("slots.nets[{index}]"));
    let kernel = File::from(inherited::claim(descriptors.kernel)?);
    let begin = match Saved::claim(descriptors.snapshot)? {
        Some(saved) => Begin::Saved(Box::new(saved)),
        None => Begin::Kernel(kernel, config.protocol),
    };
    Ok(Parts {
        kvm: inherited::claim(descriptors.kvm)?,
        begin,
        image: File::from(inherited::claim(descriptors.image)?),
        root: config.root,
        files: Vec::new(),
        cpus: config.cpus,
        granted_cpus: config.cpus.boot,
        memory: config.memory,
        hotplug_mib: *hotplug_mib,
        host: if config.emulated_supervisor {
            Host::Emulated
        } else {
            Host::Hardware
        },
        parameters: config.command_line.clone(),
        fs,
        vsock,
        messages: messages(inherited::claim(descriptors.console)?, *console)
            .context("the console")?,
        balloon: *balloon,
        disks: disks
            .iter()
            .enumerate()
            .map(disk)
            .collect::<Result<_, _>>()?,
        nets: nets.iter().enumerate().map(net).collect::<Result<_, _>>()?,
    })
}

fn claim_all(fds: &[RawFd]) -> anyhow::Result<Vec<OwnedFd>> {
    let claim = |fd: &RawFd| Ok(inherited::claim(*fd)?);
    fds.iter().map(claim).collect()
}

fn vsock(guest_cid: u32, host: &VsockHostDescriptors) -> anyhow::Result<VsockDevice> {
    let VsockHostDescriptors { listener, ports } = host;
    let listener = UnixListener::from(inherited::claim(*listener)?);
    let channel = |(port, fd): &(u32, RawFd)| Ok((*port, inherited::claim(*fd)?));
    let channels = ports.iter().map(channel).collect::<anyhow::Result<_>>()?;
    VsockDevice::with_channels(guest_cid, listener, channels).context("vsock")
}

fn disk(slot: &DiskSlotConfig) -> anyhow::Result<DiskSlot> {
    let DiskSlotConfig {
        serial,
        read_only,
        side_by_side,
        rate,
        disk,
    } = slot;
    let opened = |fd: RawFd| anyhow::Ok(Disk::new(File::from(inherited::claim(fd)?))?);
    Ok(DiskSlot {
        config: BlkConfig {
            serial: serial.clone(),
            read_only: *read_only,
            rate: limit(*rate),
            engine: match side_by_side {
                true => Engine::SideBySide,
                false => Engine::OneByOne,
            },
        },
        disk: disk.map(opened).transpose()?,
    })
}

fn net(slot: &NetSlotConfig) -> anyhow::Result<NetSlot> {
    let NetSlotConfig {
        mac,
        mtu,
        pairs,
        receive,
        send,
        taps,
    } = slot;
    Ok(NetSlot {
        config: NetConfig {
            mac: *mac,
            mtu: *mtu,
            pairs: *pairs,
            receive: limit(*receive),
            send: limit(*send),
        },
        taps: claim_all(taps)?,
    })
}

fn limit(rate: RateConfig) -> RateLimit {
    let RateConfig {
        bytes_per_second,
        operations_per_second,
    } = rate;
    RateLimit {
        bytes_per_second,
        operations_per_second,
    }
}

/// Where the guest's messages go: what does not fit now is lost.
fn messages(console: OwnedFd, device: bool) -> io::Result<Messages> {
    rustix::io::ioctl_fionbio(&console, true)?;
    let log = device.then(|| console.try_clone().and_then(Peer::log));
    Ok(Messages {
        serial: Box::new(Serial(File::from(console))),
        console: log.transpose()?,
        log_moves: true,
    })
}

struct Serial(File);

impl Write for Serial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
