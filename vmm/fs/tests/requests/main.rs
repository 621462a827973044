//! Requests that no kernel sends, straight into the device: nothing outside the share is touched,
//! nothing panics, and the guest gets an error.

mod device;
mod inodes;
mod names;
mod opening;
#[path = "../support/mod.rs"]
mod support;

use std::{fs, os::unix::fs::MetadataExt};

use proptest::prelude::*;

use crate::{device::Device, support::*};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_are_answered_and_break_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..300), room in 0usize..300) {
        let mut device = Device::new(100);
        let answer = device.send(&bytes, room);
        prop_assert!(answer.len() <= room);
        prop_assert_eq!(device.lookup(ROOT, b"f").is_ok(), true);
    }

    #[test]
    fn random_bodies_of_real_requests_stay_in_the_share(
        requests in proptest::collection::vec(
            (0u32..60, 0u64..8, proptest::collection::vec(any::<u8>(), 0..120)), 1..20
        ),
    ) {
        let mut device = Device::new(100);
        let outside = fs::metadata(device.directory.path().join("outside")).unwrap();
        for (opcode, node, body) in requests {
            // DESTROY and INIT reset the device and are legal; all others may fail, never panic.
            let answer = device.send(&message(opcode, node, (0, 0), &body), 0x8000);
            prop_assert!(answer.is_empty() || answer.len() >= 16);
        }
        let after = fs::metadata(device.directory.path().join("outside")).unwrap();
        prop_assert_eq!(outside.mtime_nsec(), after.mtime_nsec());
        prop_assert_eq!(fs::read(device.directory.path().join("outside/secret")).unwrap(), b"secret");
    }
}
