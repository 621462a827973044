//! One request at a time: what it does to the disk, and which are errors.

use isopod_virtio::testing::Buffer;
use rstest::rstest;
use virtio_bindings::virtio_blk::*;

use super::{super::*, *};

#[rstest]
fn sectors_are_read_and_written(#[values(Engine::OneByOne, Engine::SideBySide)] engine: Engine) {
    let mut rig = rig_of(engine);
    let (status, bytes) = rig.request(&header(VIRTIO_BLK_T_IN, 3), 1024);
    assert_eq!(u32::from(status), VIRTIO_BLK_S_OK);
    assert_eq!(bytes, [[4; 512], [5; 512]].concat());

    let mut write = header(VIRTIO_BLK_T_OUT, 63);
    write.extend_from_slice(&[0xab; 512]);
    assert_eq!(rig.status(&write, 0), VIRTIO_BLK_S_OK);
    assert_eq!(rig.on_disk(63), [0xab; 512]);
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_FLUSH, 0), 0),
        VIRTIO_BLK_S_OK
    );
}

#[rstest]
#[case::past_the_end(VIRTIO_BLK_T_IN, 63, 1024)]
#[case::far_past_the_end(VIRTIO_BLK_T_IN, u64::MAX, 512)]
#[case::offset_that_wraps(VIRTIO_BLK_T_IN, u64::MAX / 512 + 1, 512)]
#[case::half_a_sector(VIRTIO_BLK_T_IN, 0, 256)]
#[case::no_room_for_the_serial(VIRTIO_BLK_T_GET_ID, 0, 19)]
fn what_is_not_on_the_disk_is_an_error(
    #[case] kind: u32,
    #[case] sector: u64,
    #[case] room: usize,
    #[values(Engine::OneByOne, Engine::SideBySide)] engine: Engine,
) {
    let mut rig = rig_of(engine);
    assert_eq!(rig.status(&header(kind, sector), room), VIRTIO_BLK_S_IOERR);
    let counters = rig.control.call(|blk| blk.counters()).unwrap();
    assert!(counters.contains(&("guest_errors", 1)));
}

#[test]
fn requests_that_nobody_knows_are_unsupported() {
    assert_eq!(rig().status(&header(99, 0), 0), VIRTIO_BLK_S_UNSUPP);
}

#[test]
fn a_request_without_a_header_or_a_status_is_survived() {
    let mut rig = rig();
    assert_eq!(rig.status(&[0; 7], 0), VIRTIO_BLK_S_IOERR);
    let at = rig.driver.ram.allocate(16);
    rig.queue.offer(&[Buffer::Readable(at, 16)]);
    rig.driver.notify(0);
    assert_eq!(rig.driver.used(&mut rig.queue).written, 0);
}

#[rstest]
fn discarded_and_zeroed_ranges_read_as_zeroes(
    #[values(Engine::OneByOne, Engine::SideBySide)] engine: Engine,
) {
    let mut rig = rig_of(engine);
    for (kind, sector, flags) in [
        (VIRTIO_BLK_T_DISCARD, 8, 0),
        (VIRTIO_BLK_T_WRITE_ZEROES, 16, 0),
        (VIRTIO_BLK_T_WRITE_ZEROES, 24, 1),
    ] {
        let request = [header(kind, 0), range(sector, 8, flags)].concat();
        assert_eq!(rig.status(&request, 0), VIRTIO_BLK_S_OK);
        assert_eq!(rig.on_disk(sector), [0; 512]);
        assert_eq!(rig.on_disk(sector + 7), [0; 512]);
        assert_ne!(rig.on_disk(sector + 8), [0; 512]);
    }
    assert_eq!(
        rig.file.as_file().metadata().unwrap().len(),
        SECTORS * SECTOR
    );
}

#[rstest]
#[case::discard_with_a_flag(VIRTIO_BLK_T_DISCARD, range(0, 1, 1), VIRTIO_BLK_S_UNSUPP)]
#[case::unknown_flag(VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 2), VIRTIO_BLK_S_UNSUPP)]
#[case::past_the_end(VIRTIO_BLK_T_DISCARD, range(63, 2, 0), VIRTIO_BLK_S_IOERR)]
#[case::nothing(VIRTIO_BLK_T_DISCARD, range(0, 0, 0), VIRTIO_BLK_S_IOERR)]
#[case::two_ranges(
    VIRTIO_BLK_T_DISCARD,
    [range(0, 1, 0), range(1, 1, 0)].concat(),
    VIRTIO_BLK_S_IOERR
)]
#[case::half_a_range(VIRTIO_BLK_T_WRITE_ZEROES, vec![0; 15], VIRTIO_BLK_S_IOERR)]
fn ranges_that_cannot_be_are_refused(
    #[case] kind: u32,
    #[case] range: Vec<u8>,
    #[case] status: u32,
) {
    let request = [header(kind, 0), range].concat();
    assert_eq!(rig().status(&request, 0), status);
}

#[rstest]
fn a_file_that_shrinks_is_an_error_of_its_requests(
    #[values(Engine::OneByOne, Engine::SideBySide)] engine: Engine,
) {
    let mut rig = rig_of(engine);
    rig.file.as_file().set_len(512).unwrap();
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_IN, 0), 1024),
        VIRTIO_BLK_S_IOERR
    );
    assert_eq!(
        rig.status(&header(VIRTIO_BLK_T_IN, 0), 512),
        VIRTIO_BLK_S_OK
    );
    let counters = rig.control.call(|blk| blk.counters()).unwrap();
    assert!(counters.contains(&("disk_errors", 1)));
}
