//! Packets of a guest, and packets for it, of a slot whose link comes and goes.

#![no_main]

use std::os::{fd::OwnedFd, unix::net::UnixDatagram};

use drive::{Drive, Step};
use isopod_devices::{
    net::{HEADER, Net, NetConfig},
    rate::RateLimit,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, u64, Vec<Step>)| {
    let (two, features, steps) = input;
    let pairs = 1 + u16::from(two);
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        pairs,
        receive: RateLimit::default(),
        send: RateLimit::default(),
    };
    let mut wires = Vec::new();
    let mut net = Net::new(config).unwrap();
    net.join(link(pairs, &mut wires)).unwrap();
    let mut drive = Drive::new(net, features);
    for step in steps.into_iter().take(64) {
        drive.step(step, |net, act| match act % 4 {
            0 => net.disconnect(),
            // The driver's features may want offloads that a socket has not.
            1 => drop(net.join(link(pairs, &mut wires))),
            _ => {
                let packet = vec![act; HEADER + 20 * usize::from(act)];
                for wire in &wires {
                    let _ = wire.send(&packet);
                }
            }
        });
    }
    drive.finish();
});

fn link(pairs: u16, wires: &mut Vec<UnixDatagram>) -> Vec<OwnedFd> {
    let ends = (0..pairs).map(|_| UnixDatagram::pair().unwrap());
    let (ours, theirs): (Vec<_>, Vec<_>) = ends.unzip();
    for wire in &theirs {
        wire.set_nonblocking(true).unwrap();
    }
    *wires = theirs;
    ours.into_iter().map(OwnedFd::from).collect()
}
