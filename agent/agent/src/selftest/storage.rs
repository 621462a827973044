//! Devices that hold data: disks, ranges of memory, the shared directory.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::{
    fs::{FallocateFlags, OFlags, fallocate},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::{Device, SelfTestError, expect, pattern, system};

const BLOCK: usize = 4096;
/// Requests of a flood, per thread.
const FLOOD: usize = 32;
const THREADS: usize = 4;

/// Memory that a device can be given as it is: whole pages.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self {
            bytes,
            start,
            length,
        }
    }

    fn get(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(self.start..self.start + self.length)
            .unwrap_or_default()
    }
}

/// Reads and, where it may, writes a disk past the page cache.
pub(super) fn disk(device: &Device, scale: usize) -> Result<String, SelfTestError> {
    let name = device.child("block")?;
    let attribute = |what: &str| device.attribute(&format!("block/{name}/{what}"));
    let sectors: u64 = attribute("size")?.parse().unwrap_or(0);
    let writable = attribute("ro")? == "0";
    let path = Path::new("/dev").join(&name);
    if sectors == 0 {
        return Ok("empty".to_owned());
    }
    let blocks = (sectors / 8).max(1);
    let file = File::options()
        .read(true)
        .write(writable)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(&path)
        .map_err(system("open", &path))?;
    let mut done = format!("{blocks} blocks");
    if writable {
        written(&file, &path, blocks, scale)?;
        done.push_str(", written and flushed and discarded");
    }
    same_as_cached(&file, &path, blocks, scale)?;
    flood(&file, &path, blocks, scale)?;
    Ok(done)
}

fn written(file: &File, path: &Path, blocks: u64, scale: usize) -> Result<(), SelfTestError> {
    let (mut out, mut back) = (Aligned::new(BLOCK), Aligned::new(BLOCK));
    let places = |n: usize| (n as u64).wrapping_mul(7919) % blocks;
    let count = (8 * scale).min(usize::try_from(blocks).unwrap_or(usize::MAX));
    for n in 0..count {
        pattern(n, out.get());
        let at = places(n) * BLOCK as u64;
        file.write_all_at(out.get(), at)
            .map_err(system("write", path))?;
    }
    file.sync_all().map_err(system("flush", path))?;
    for n in (0..count).rev() {
        // A later block may lie on an earlier one's place.
        if (n + 1..count).any(|later| places(later) == places(n)) {
            continue;
        }
        pattern(n, out.get());
        file.read_exact_at(back.get(), places(n) * BLOCK as u64)
            .map_err(system("read", path))?;
        expect(out.get() == back.get(), || {
            format!("block {} differs", places(n))
        })?;
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, 0, BLOCK as u64) {
        Ok(()) => {
            file.read_exact_at(back.get(), 0)
                .map_err(system("read", path))?;
            expect(back.get().iter().all(|b| *b == 0), || {
                "a discarded block is not zero".to_owned()
            })
        }
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(system("discard", path)(error.into())),
    }
}

/// What comes from the device is what the page cache says, in requests of all sizes.
fn same_as_cached(
    file: &File,
    path: &Path,
    blocks: u64,
    scale: usize,
) -> Result<(), SelfTestError> {
    let cached = File::open(path).map_err(system("open", path))?;
    for n in 0..4 * scale {
        let many = 1 << (n % 5);
        if many as u64 > blocks {
            continue;
        }
        let at = (n as u64).wrapping_mul(104_729) % (blocks - many as u64 + 1) * BLOCK as u64;
        let mut direct = Aligned::new(many * BLOCK);
        let mut other = vec![0; many * BLOCK];
        file.read_exact_at(direct.get(), at)
            .map_err(system("read", path))?;
        cached
            .read_exact_at(&mut other, at)
            .map_err(system("read", path))?;
        expect(direct.get() == other, || {
            format!("{many} blocks at {at} differ")
        })?;
    }
    Ok(())
}

/// As many requests at once as there are threads.
fn flood(file: &File, path: &Path, blocks: u64, scale: usize) -> Result<(), SelfTestError> {
    let one = |thread: usize| {
        let mut block = Aligned::new(BLOCK);
        for n in 0..FLOOD * scale {
            let at = ((n * THREADS + thread) as u64).wrapping_mul(31) % blocks * BLOCK as u64;
            file.read_exact_at(block.get(), at)?;
        }
        Ok(())
    };
    let outcome: std::io::Result<()> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || one(thread)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")))
        })
    });
    outcome.map_err(system("flood", path))
}

/// A range of memory as a block device. The host lets nobody change it, whatever the guest's kernel
/// thinks: what is written does not arrive. Flushes are the device's only requests.
pub(super) fn range(device: &Device, scale: usize) -> Result<String, SelfTestError> {
    let path = &Path::new("/dev").join(device.descendant()?);
    let open = |write| {
        let mut options = File::options();
        let options = options
            .read(true)
            .write(write)
            .custom_flags(OFlags::DIRECT.bits() as i32);
        options.open(path).map_err(system("open", path))
    };
    let (mut before, mut after) = (Aligned::new(16 * BLOCK), Aligned::new(16 * BLOCK));
    let look = |file: &File, to: &mut Aligned| {
        let read = file.read_exact_at(to.get(), 0);
        read.map_err(system("read", path))
    };
    look(&open(false)?, &mut before)?;
    let mut ours = Aligned::new(BLOCK);
    pattern(scale, ours.get());
    let file = open(true)?;
    // Refused or lost, either is right.
    let written = match file.write_all_at(ours.get(), 0) {
        Ok(()) => "a write is lost",
        Err(_) => "a write is refused",
    };
    for _ in 0..FLOOD * scale {
        file.sync_all().map_err(system("flush", path))?;
    }
    look(&file, &mut after)?;
    expect(before.get() == after.get(), || {
        "the guest has changed it".to_owned()
    })?;
    Ok(format!("{written}, {} flushes", FLOOD * scale))
}

/// The shared directory: a file there and back, names, and a flood of small requests.
pub(super) fn share(scale: usize) -> Result<String, SelfTestError> {
    let place = Path::new("/run/selftest");
    fs::create_dir_all(place).map_err(system("make", place))?;
    mount(
        isopod_protocol::paths::SHARED_TAG,
        place,
        "virtiofs",
        MountFlags::empty(),
        None,
    )
    .map_err(|e| system("mount", place)(e.into()))?;
    let outcome = files(place, scale);
    unmount(place, UnmountFlags::empty()).map_err(|e| system("unmount", place)(e.into()))?;
    outcome
}

fn files(place: &Path, scale: usize) -> Result<String, SelfTestError> {
    let path = place.join("selftest");
    let mut bytes = vec![0; 64 << 10];
    pattern(scale, &mut bytes);
    fs::write(&path, &bytes).map_err(system("write", &path))?;
    // Through another name, so that nothing is remembered.
    let other = place.join("selftest-renamed");
    fs::rename(&path, &other).map_err(system("rename", &path))?;
    let back = fs::read(&other).map_err(system("read", &other))?;
    expect(back == bytes, || "a file came back another".to_owned())?;
    for n in 0..FLOOD * scale {
        let path = place.join(format!("selftest-{n}"));
        File::create(&path).map_err(system("make", &path))?;
        fs::remove_file(&path).map_err(system("remove", &path))?;
    }
    fs::remove_file(&other).map_err(system("remove", &other))?;
    Ok(format!("{} files", FLOOD * scale))
}
