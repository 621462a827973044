//! Requests to plug and unplug, with a region of three blocks.

#![no_main]

use drive::{Drive, MEMORY, Step};
use isopod_devices::mem::{AlwaysMapped, MIN_BLOCK, Mem, MemConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, Vec<Step>)| {
    let (features, steps) = input;
    let config = MemConfig {
        start: MIN_BLOCK,
        bytes: MEMORY - MIN_BLOCK,
        block: MIN_BLOCK,
    };
    let mut drive = Drive::new(Mem::new(config, AlwaysMapped).unwrap(), features);
    for step in steps.into_iter().take(64) {
        drive.step(step, |mem, act| {
            let wanted = u64::from(act % 4) * MIN_BLOCK;
            mem.request(wanted).unwrap();
        });
    }
    drive.finish();
});
