//! Devices that need something of the host.

use std::{
    fs::File,
    os::unix::net::{UnixDatagram, UnixListener},
};

use isopod_devices::{
    blk::{Blk, BlkConfig, Disk, Engine},
    mem::{AlwaysMapped, MIN_BLOCK, Mem, MemConfig},
    net::{Net, NetConfig},
    rate::RateLimit,
    vsock::{VsockConfig, VsockDevice},
};

use crate::{MEMORY, Target, under};

pub fn blk(engine: Engine) -> Box<dyn Target> {
    let file: File = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let mut blk = Blk::new(BlkConfig {
        engine,
        ..BlkConfig::default()
    })
    .unwrap();
    blk.insert(Disk::new(file).unwrap()).unwrap();
    under(blk)
}

pub fn mem() -> Box<dyn Target> {
    let config = MemConfig {
        start: MEMORY - 4 * MIN_BLOCK,
        bytes: 4 * MIN_BLOCK,
        block: MIN_BLOCK,
    };
    under(Mem::new(config, AlwaysMapped).unwrap())
}

pub fn net() -> Box<dyn Target> {
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        pairs: 1,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    };
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    // Packets for the guest are always there.
    theirs.set_nonblocking(true).unwrap();
    while theirs.send(&[0; 100]).is_ok() {}
    std::mem::forget(theirs);
    let mut net = Net::new(config).unwrap();
    net.join(vec![ours.into()]).unwrap();
    under(net)
}

pub fn vsock() -> Box<dyn Target> {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("vsock.sock")).unwrap();
    let config = VsockConfig {
        guest_cid: 3,
        connect_dir: dir.path().into(),
    };
    under(VsockDevice::new(config, listener).unwrap())
}
