//! The slot and its disk, as a driver sees them.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    time::{Duration, Instant},
};

use isopod_virtio::{
    Control,
    testing::{Buffer, DriverQueue, GuestRam, MmioDriver},
};
use rstest::rstest;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::*;

use super::*;

const SECTORS: u64 = 64;

struct Rig {
    driver: MmioDriver,
    control: Control<Blk>,
    queue: DriverQueue,
    file: NamedTempFile,
}

fn disk_file() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    for n in 0..SECTORS {
        file.write_all(&[n as u8 + 1; SECTOR as usize]).unwrap();
    }
    file
}

fn open(file: &NamedTempFile, writable: bool) -> Disk {
    let file = OpenOptions::new()
        .read(true)
        .write(writable)
        .open(file.path());
    Disk::new(file.unwrap()).unwrap()
}

fn config(read_only: bool) -> BlkConfig {
    BlkConfig {
        serial: "pod-root".into(),
        read_only,
        rate: RateLimit::default(),
        engine: Engine::OneByOne,
    }
}

fn rig_with(config: BlkConfig, features: u64) -> Rig {
    let file = disk_file();
    let writable = !config.read_only;
    let mut blk = Blk::new(config).unwrap();
    blk.insert(open(&file, writable)).unwrap();
    let (mut driver, control) = MmioDriver::attach(blk);
    let queue = driver.start(features, &[256]).remove(0);
    Rig {
        driver,
        control,
        queue,
        file,
    }
}

fn rig() -> Rig {
    rig_of(Engine::OneByOne)
}

fn rig_of(engine: Engine) -> Rig {
    let config = BlkConfig {
        engine,
        ..config(false)
    };
    rig_with(config, feature::EVENT_IDX)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend_from_slice(&sectors.to_le_bytes());
    range.extend_from_slice(&flags.to_le_bytes());
    range
}

impl Rig {
    /// Does one request; its status and what was written before it.
    fn request(&mut self, request: &[u8], room: usize) -> (u8, Vec<u8>) {
        let ram = &mut self.driver.ram;
        let at = ram.allocate(request.len() as u64);
        ram.write(at, request);
        let answer = ram.allocate(room as u64 + 1);
        ram.write(answer + room as u64, &[0xee]);
        // The header and what follows it in buffers of their own, as Linux has them.
        let (head, data) = (request.len().min(16), request.len().saturating_sub(16));
        let mut buffers = vec![Buffer::Readable(at, head as u32)];
        if data > 0 {
            buffers.push(Buffer::Readable(at + 16, data as u32));
        }
        if room > 0 {
            buffers.push(Buffer::Writable(answer, room as u32));
        }
        buffers.push(Buffer::Writable(answer + room as u64, 1));
        self.queue.offer(&buffers);
        self.driver.notify(0);
        let used = self.driver.used(&mut self.queue);
        assert_eq!(used.written as usize, room + 1);
        let bytes = self.driver.ram.read(answer, room + 1);
        (bytes[room], bytes[..room].to_vec())
    }

    fn status(&mut self, request: &[u8], room: usize) -> u32 {
        self.request(request, room).0.into()
    }

    fn on_disk(&self, sector: u64) -> Vec<u8> {
        let mut file = File::open(self.file.path()).unwrap();
        file.seek(SeekFrom::Start(sector * SECTOR)).unwrap();
        let mut bytes = vec![0; SECTOR as usize];
        file.read_exact(&mut bytes).unwrap();
        bytes
    }
}

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

impl Rig {
    /// Offers reads of one sector each; where each head's answer will be, and what it is to be.
    fn offer_reads(&mut self, count: u64) -> HashMap<u16, (u64, u8)> {
        let ram = &mut self.driver.ram;
        (0..count)
            .map(|n| {
                let sector = n % SECTORS;
                let at = ram.allocate(16);
                ram.write(at, &header(VIRTIO_BLK_T_IN, sector));
                let answer = ram.allocate(513);
                let buffers = [Buffer::Readable(at, 16), Buffer::Writable(answer, 513)];
                (self.queue.offer(&buffers), (answer, sector as u8 + 1))
            })
            .collect()
    }

    fn expect_reads(&mut self, mut answers: HashMap<u16, (u64, u8)>) {
        while !answers.is_empty() {
            let used = self.driver.used(&mut self.queue);
            let (answer, byte) = answers.remove(&used.head).unwrap();
            assert_eq!(used.written, 513);
            let mut expected = vec![byte; 512];
            expected.push(VIRTIO_BLK_S_OK as u8);
            assert_eq!(self.driver.ram.read(answer, 513), expected);
        }
    }
}

#[rstest]
fn a_whole_ring_of_requests_is_served(
    #[values(Engine::OneByOne, Engine::SideBySide)] engine: Engine,
) {
    let mut rig = rig_of(engine);
    for _ in 0..3 {
        let answers = rig.offer_reads(128);
        rig.driver.notify(0);
        rig.expect_reads(answers);
    }
}

#[rstest]
fn what_is_on_its_way_is_done_before_a_save(
    #[values(Engine::OneByOne, Engine::SideBySide)] engine: Engine,
) {
    let mut rig = rig_of(engine);
    let answers = rig.offer_reads(100);
    rig.driver.notify(0);
    let state = rig.driver.save();
    let counters = rig.driver.transport.metrics().unwrap().device;
    let reads = counters.iter().find(|(n, _)| n == "reads").unwrap().1;
    assert_eq!(u64::from(state.registers.queues[0].next_used), reads);
    let mut other = Blk::new(BlkConfig {
        engine,
        ..config(false)
    })
    .unwrap();
    other.insert(open(&rig.file, true)).unwrap();
    let (driver, control) = rig.driver.restore(other, state);
    let mut rig = Rig {
        driver,
        control,
        ..rig
    };
    rig.expect_reads(answers);
}

#[test]
fn nothing_on_its_way_outlives_a_reset() {
    let mut rig = rig_of(Engine::SideBySide);
    for _ in 0..20 {
        rig.offer_reads(64);
        rig.driver.notify(0);
        rig.driver.reset();
        let before = rig.driver.ram.read(0, 1 << 20);
        assert!(rig.driver.ram.read(0, 1 << 20) == before);
        rig.driver.ram = GuestRam::over(rig.driver.ram.memory.clone(), 16 << 20);
        rig.driver.ram.write(0, &vec![0; 1 << 20]);
        rig.queue = rig.driver.start(feature::EVENT_IDX, &[256]).remove(0);
    }
    let answers = rig.offer_reads(64);
    rig.driver.notify(0);
    rig.expect_reads(answers);
}

#[test]
fn a_chain_that_is_offered_twice_is_answered_twice() {
    let mut rig = rig_of(Engine::SideBySide);
    let at = rig.driver.ram.allocate(16);
    rig.driver.ram.write(at, &header(VIRTIO_BLK_T_IN, 1));
    let answer = rig.driver.ram.allocate(513);
    let head = rig
        .queue
        .offer(&[Buffer::Readable(at, 16), Buffer::Writable(answer, 513)]);
    for _ in 0..30 {
        rig.queue.offer_head(head);
    }
    rig.driver.notify(0);
    for _ in 0..31 {
        rig.driver.until(|| rig.queue.take_plausible_used());
    }
    assert_eq!(rig.queue.take_plausible_used(), None);
}

#[test]
fn a_chain_that_changes_on_its_way_is_judged_again() {
    let mut rig = rig_of(Engine::SideBySide);
    let at = rig.driver.ram.allocate(16);
    rig.driver.ram.write(at, &header(VIRTIO_BLK_T_IN, 1));
    let answer = rig.driver.ram.allocate(513);
    for _ in 0..50 {
        let buffers = [Buffer::Readable(at, 16), Buffer::Writable(answer, 513)];
        let head = rig.queue.offer(&buffers);
        rig.driver.notify(0);
        rig.queue.write_descriptor(head, u64::MAX, 16, 0, 0);
        rig.driver.until(|| rig.queue.take_plausible_used());
    }
    assert_eq!(rig.driver.status() & 64, 0);
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
