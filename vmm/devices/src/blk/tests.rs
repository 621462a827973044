//! The slot and its disk, as a driver sees them.

mod flight;
mod requests;
mod slot;

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
};

use isopod_virtio::{
    Control,
    testing::{Buffer, DriverQueue, MmioDriver},
};
use tempfile::NamedTempFile;

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
