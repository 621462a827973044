//! Requests to a disk of 128 sectors, which comes and goes.

#![no_main]

use drive::{Drive, Step};
use isopod_devices::blk::{Blk, BlkConfig, Disk, Engine};
use libfuzzer_sys::fuzz_target;

fn disk() -> Disk {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(64 << 10).unwrap();
    Disk::new(file).unwrap()
}

fuzz_target!(|input: (bool, bool, u64, Vec<Step>)| {
    let (read_only, side_by_side, features, steps) = input;
    let config = BlkConfig {
        serial: "fuzzed".into(),
        read_only,
        engine: match side_by_side {
            true => Engine::SideBySide,
            false => Engine::OneByOne,
        },
        ..BlkConfig::default()
    };
    let mut blk = Blk::new(config).unwrap();
    blk.insert(disk()).unwrap();
    let mut drive = Drive::new(blk, features);
    for step in steps.into_iter().take(64) {
        drive.step(step, |blk, act| match act % 2 {
            0 => blk.insert(disk()).unwrap(),
            _ => blk.remove().unwrap(),
        });
    }
    drive.finish();
});
