//! The devices whose requests say almost nothing: entropy and persistent memory.

#![no_main]

use drive::{Drive, Step};
use isopod_devices::{pmem::Pmem, rng::Rng};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, u64, Vec<Step>)| {
    let (pmem, features, steps) = input;
    let steps = steps.into_iter().take(64);
    if pmem {
        let mut drive = Drive::new(Pmem::new(1 << 32, 2 << 20).unwrap(), features);
        steps.for_each(|step| drive.step(step, |_, _| ()));
        drive.finish();
    } else {
        let mut drive = Drive::new(Rng::default(), features);
        steps.for_each(|step| drive.step(step, |_, _| ()));
        drive.finish();
    }
});
