//! The slot: what the driver learns of the disk, disks that come and go, limits, saved state.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::*;

use super::*;

#[test]
fn the_driver_learns_what_disk_it_is() {
    let mut rig = rig();
    let config = rig.driver.config(60);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[12..16], 254u32.to_le_bytes());
    assert_eq!(config[20..24], 4096u32.to_le_bytes());
    assert_eq!(config[56], 1);
    let (status, id) = rig.request(&header(VIRTIO_BLK_T_GET_ID, 0), 20);
    assert_eq!(u32::from(status), VIRTIO_BLK_S_OK);
    assert_eq!(id, b"pod-root\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_read_only_slot_is_never_written() {
    let mut rig = rig_with(config(true), 1 << VIRTIO_BLK_F_RO);
    let offered = rig.driver.device_features();
    assert_eq!(offered & (1 << VIRTIO_BLK_F_DISCARD), 0);
    let before = rig.on_disk(0);
    for (kind, rest) in [
        (VIRTIO_BLK_T_OUT, vec![0xab; 512]),
        (VIRTIO_BLK_T_DISCARD, range(0, 8, 0)),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 8, 0)),
    ] {
        let request = [header(kind, 0), rest].concat();
        assert_eq!(rig.status(&request, 0), VIRTIO_BLK_S_IOERR);
    }
    assert_eq!(rig.on_disk(0), before);
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_IN, 0), 512),
        VIRTIO_BLK_S_OK
    );
}

#[test]
fn a_disk_comes_and_goes_while_the_driver_runs() {
    let (mut driver, control) = MmioDriver::attach(Blk::new(config(false)).unwrap());
    let queue = driver.start(0, &[64]).remove(0);
    let file = disk_file();
    assert_eq!(driver.config(8), 0u64.to_le_bytes());
    let mut rig = Rig {
        driver,
        control,
        queue,
        file,
    };
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_IN, 0), 512),
        VIRTIO_BLK_S_IOERR
    );

    let disk = open(&rig.file, true);
    rig.control
        .call(move |blk| blk.insert(disk))
        .unwrap()
        .unwrap();
    rig.driver.interrupt(2);
    assert_eq!(rig.driver.config(8), SECTORS.to_le_bytes());
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_IN, 0), 512),
        VIRTIO_BLK_S_OK
    );

    rig.control.call(Blk::remove).unwrap().unwrap();
    rig.driver.interrupt(2);
    assert_eq!(rig.driver.config(8), 0u64.to_le_bytes());
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_IN, 0), 512),
        VIRTIO_BLK_S_IOERR
    );
}

#[test]
fn a_disk_must_fit_its_slot() {
    let file = disk_file();
    let mut blk = Blk::new(config(false)).unwrap();
    assert!(matches!(
        blk.insert(open(&file, false)),
        Err(BlkError::ReadOnlyDisk)
    ));
    let long = BlkConfig {
        serial: "x".repeat(21),
        ..config(false)
    };
    assert!(matches!(Blk::new(long), Err(BlkError::Serial(_))));
    let socket = File::open("/dev/null").unwrap();
    assert!(matches!(Disk::new(socket), Err(DiskError::Kind)));
    let write_only = OpenOptions::new().write(true).open(file.path()).unwrap();
    assert!(matches!(Disk::new(write_only), Err(DiskError::NotReadable)));
}

#[test]
fn a_limited_slot_makes_the_driver_wait() {
    let limited = BlkConfig {
        rate: RateLimit {
            operations_per_second: 50,
            ..RateLimit::default()
        },
        ..config(false)
    };
    let mut rig = rig_with(limited, feature::EVENT_IDX);
    let begin = Instant::now();
    // Five are in the bucket; the other ten come at fifty a second.
    for _ in 0..15 {
        assert_eq!(
            rig.status(&header(VIRTIO_BLK_T_IN, 0), 512),
            VIRTIO_BLK_S_OK
        );
    }
    assert!(
        begin.elapsed() > Duration::from_millis(150),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn a_slot_is_saved_and_restored() {
    let mut rig = rig();
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_IN, 0), 512),
        VIRTIO_BLK_S_OK
    );
    let state = rig.driver.save();
    let mut other = Blk::new(config(false)).unwrap();
    other.insert(open(&rig.file, true)).unwrap();
    let (driver, control) = rig.driver.restore(other, state.clone());
    let mut rig = Rig {
        driver,
        control,
        ..rig
    };
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_IN, 0), 512),
        VIRTIO_BLK_S_OK
    );

    let read_only = Blk::new(config(true)).unwrap();
    let (driver, _control) = MmioDriver::attach(read_only);
    assert!(driver.transport.restore(state).is_err());
}
