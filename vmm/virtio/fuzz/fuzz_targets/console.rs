//! Output, input and the conversation about ports.

#![no_main]

use std::{io::Write, os::unix::net::UnixStream};

use drive::{Drive, Step};
use isopod_devices::console::{Console, Peer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, Vec<Step>)| {
    let (features, steps) = input;
    let mut others = Vec::new();
    let mut drive = Drive::new(Console::new().unwrap(), features);
    for step in steps.into_iter().take(64) {
        drive.step(step, |console, act| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let peer = Peer::stream(ours).unwrap();
            match act % 4 {
                0 => console.set_log(Some(peer)),
                1 => console.set_interactive(Some(peer)),
                2 => console.set_interactive(None),
                _ => others.clear(),
            }
            theirs.write_all(&[act; 100]).unwrap_or_default();
            others.push(theirs);
        });
    }
    drive.finish();
});
