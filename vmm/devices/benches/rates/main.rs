//! What `blk` and `net` do in a second, and how long one request takes, with a guest driver in this
//! process: the device's thread, its rings and the system calls are as in a monitor; a guest's own
//! instructions and its exits are not in the figures. Beside each is what this host does with the same
//! file or wire by system calls alone, and beside `blk` what QEMU's device does for the same driver.
//!
//! Run by `cargo bench -p isopod-devices` and by `make bench BENCH=devices`, which wants `--json`: a line
//! for each figure.

mod card;
mod disk;
mod peer;

use std::time::Duration;

use isopod_devices::blk::Engine;
use serde_json::json;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

use crate::{
    card::{Card, Wire},
    disk::{Host, Rig},
    peer::Peer,
};

/// For each figure.
const TIME: Duration = Duration::from_secs(1);
const MIB: f64 = (1 << 20) as f64;
const SMALL: u32 = 4096;
const LARGE: u32 = 128 << 10;
/// A full packet of an Ethernet, and one that the guest's kernel left whole.
const PACKETS: [(usize, &str); 2] = [(1500, "1500 bytes"), (60 << 10, "60 KiB")];

/// A figure of the device's, and the same of others.
struct Figure {
    name: String,
    unit: &'static str,
    device: f64,
    others: Vec<(&'static str, f64)>,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let given = |flag: &str| words.iter().any(|word| word == flag);
    // `cargo test --benches` only wants to know that it is there.
    if !given("--bench") {
        return;
    }
    let json = given("--json");
    let tell = |figure: Figure| {
        let Figure {
            name,
            unit,
            device,
            others,
        } = figure;
        for (other, figure) in others {
            if json {
                let other = json!({ "name": other, "figure": figure });
                let line = json!({ "name": name, "unit": unit, "isopod": device, "other": other });
                println!("{line}");
            } else {
                println!("{name:<42} {device:>10.1} {unit:<10} {other} {figure:.1}");
            }
        }
    };
    disks().into_iter().for_each(tell);
    cards().into_iter().for_each(tell);
}

fn disks() -> Vec<Figure> {
    let mut host = Host::new();
    let mut per_second = |kind, bytes| host.run(kind, bytes);
    let small = per_second(VIRTIO_BLK_T_IN, SMALL);
    let large = [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT].map(|kind| per_second(kind, LARGE));
    let rate = |requests: f64| requests * f64::from(LARGE) / MIB;
    let mut figures = Vec::new();
    for (engine, name, aio) in [
        (Engine::OneByOne, "blk", "threads"),
        (Engine::SideBySide, "blk by io_uring", "io_uring"),
    ] {
        let mut disk = Rig::new(engine);
        let mut peer = Peer::start(aio);
        // The two take turns, so that a busy moment meets both.
        let mut both = |kind, bytes, depth, host, scale: &dyn Fn(f64) -> f64| {
            let device = scale(disk.run(kind, bytes, depth));
            let peer = peer.as_mut().map(|peer| peer.rig.run(kind, bytes, depth));
            let peer = peer.map(|peer| ("qemu-storage-daemon", scale(peer)));
            (device, [host].into_iter().chain(peer).collect())
        };
        let latency = |rate: f64| 1e6 / rate;
        let host = ("pread", latency(small));
        let (device, others) = both(VIRTIO_BLK_T_IN, SMALL, 1, host, &latency);
        figures.push(Figure {
            name: format!("{name}, read 4 KiB"),
            unit: "us",
            device,
            others,
        });
        let host = ("pread", small);
        let (device, others) = both(VIRTIO_BLK_T_IN, SMALL, 32, host, &|rate| rate);
        figures.push(Figure {
            name: format!("{name}, read 4 KiB, 32 at a time"),
            unit: "reads/s",
            device,
            others,
        });
        let kinds = [
            (VIRTIO_BLK_T_IN, "read", "pread"),
            (VIRTIO_BLK_T_OUT, "write", "pwrite"),
        ];
        for ((kind, what, call), large) in kinds.into_iter().zip(large) {
            let (device, others) = both(kind, LARGE, 8, (call, rate(large)), &rate);
            figures.push(Figure {
                name: format!("{name}, {what} 128 KiB, 8 at a time"),
                unit: "MiB/s",
                device,
                others,
            });
        }
    }
    figures
}

fn cards() -> Vec<Figure> {
    let mut card = Card::new();
    let mut figures = vec![Figure {
        name: "net, there and back".to_owned(),
        unit: "us",
        device: card.round_trip() * 1e6,
        others: vec![("write, read", Wire::new().round_trip() * 1e6)],
    }];
    for (bytes, name) in PACKETS {
        figures.push(Figure {
            name: format!("net, send {name}"),
            unit: "packets/s",
            device: card.send(bytes),
            others: vec![("write, read", Wire::new().send(bytes))],
        });
    }
    figures
}
