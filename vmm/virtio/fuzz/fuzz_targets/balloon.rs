//! Page numbers, reports and statistics.

#![no_main]

use drive::{Drive, Step};
use isopod_devices::balloon::Balloon;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, Vec<Step>)| {
    let (features, steps) = input;
    let mut drive = Drive::new(Balloon::default(), features);
    for step in steps.into_iter().take(64) {
        drive.step(step, |balloon, act| match act % 2 {
            0 => balloon.refresh_stats(),
            _ => balloon.set_target(act.into()),
        });
    }
    drive.finish();
});
