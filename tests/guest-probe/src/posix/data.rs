//! Content: holes, preallocation, copies, appends, sizes.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{FallocateFlags, SeekFrom as Place, copy_file_range, fallocate, seek},
    io::Errno,
};

use super::{Check, fails, file, same};

pub const CHECKS: &[Check] = &[
    ("sparse_files_beyond_4_gib", sparse),
    ("seek_hole_and_data", seek_hole),
    ("fallocate", preallocate),
    ("copy_file_range", copy_range),
    ("append", append),
    ("append_from_many_threads", append_threads),
    ("truncate", truncate),
    ("written_data_is_read_back", read_back),
    ("two_descriptors_see_each_other", two_descriptors),
    ("sync", sync),
    ("offsets", offsets),
];

fn open(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

fn sparse(dir: &Path) -> Result<()> {
    let far = 5 << 30;
    let file = open(&dir.join("sparse"))?;
    file.write_all_at(b"far away", far)?;
    same("size", file.metadata()?.len(), far + 8)?;
    let blocks = file.metadata()?.blocks();
    if blocks > 64 {
        bail!("{blocks} blocks of 512 bytes for eight bytes");
    }
    let mut content = [1; 8];
    file.read_exact_at(&mut content, far)?;
    same("content", &content, b"far away")?;
    file.read_exact_at(&mut content, (4 << 30) - 4)?;
    same("hole across 4 GiB", content, [0; 8])
}

fn seek_hole(dir: &Path) -> Result<()> {
    let file = open(&dir.join("holes"))?;
    file.set_len(1 << 20)?;
    file.write_all_at(&[7; 4096], 65536)?;
    file.sync_all()?;
    same("first data", seek(&file, Place::Data(0))?, 65536)?;
    same(
        "hole after it",
        seek(&file, Place::Hole(65536))?,
        65536 + 4096,
    )?;
    same("hole at the start", seek(&file, Place::Hole(0))?, 0)?;
    fails(
        "data after the last",
        seek(&file, Place::Data(131_072)),
        Errno::NXIO,
    )
}

fn preallocate(dir: &Path) -> Result<()> {
    let file = open(&dir.join("allocated"))?;
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).context("allocate")?;
    same("size", file.metadata()?.len(), 1 << 20)?;
    if file.metadata()?.blocks() < 2048 {
        bail!("{} blocks for 1 MiB", file.metadata()?.blocks());
    }
    fallocate(&file, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).context("KEEP_SIZE")?;
    same("size with KEEP_SIZE", file.metadata()?.len(), 1 << 20)?;
    file.write_all_at(&[9; 65536], 0)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 4096, 8192).context("PUNCH_HOLE")?;
    let mut content = vec![1; 65536];
    file.read_exact_at(&mut content, 0)?;
    let holes = content
        .iter()
        .enumerate()
        .filter(|(at, _)| (4096..12288).contains(at));
    same(
        "bytes in the hole",
        holes.filter(|(_, byte)| **byte != 0).count(),
        0,
    )?;
    same(
        "bytes beside it",
        content.iter().filter(|byte| **byte == 9).count(),
        65536 - 8192,
    )?;
    fallocate(&file, FallocateFlags::ZERO_RANGE, 32768, 4096).context("ZERO_RANGE")?;
    file.read_exact_at(&mut content, 0)?;
    same(
        "bytes left",
        content.iter().filter(|byte| **byte == 9).count(),
        65536 - 8192 - 4096,
    )
}

fn copy_range(dir: &Path) -> Result<()> {
    let (from, to) = (open(&dir.join("from"))?, open(&dir.join("to"))?);
    let content: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    from.write_all_at(&content, 0)?;
    let (mut source, mut target) = (1000, 0);
    while source < 300_000 {
        let rest = 300_000 - usize::try_from(source)?;
        let copied = copy_file_range(&from, Some(&mut source), &to, Some(&mut target), rest)?;
        if copied == 0 {
            bail!("nothing was copied at {source}");
        }
    }
    let mut copy = Vec::new();
    File::open(dir.join("to"))?.read_to_end(&mut copy)?;
    same("copied bytes", copy.len(), 299_000)?;
    same("content", content.get(1000..) == Some(&copy), true)
}

fn append(dir: &Path) -> Result<()> {
    let path = file(dir, "log", "one\n")?;
    let mut log = File::options().append(true).open(&path)?;
    log.seek(SeekFrom::Start(0))?;
    log.write_all(b"two\n")?;
    fs::write(dir.join("other"), "")?;
    File::options()
        .append(true)
        .open(&path)?
        .write_all(b"three\n")?;
    log.write_all(b"four\n")?;
    same(
        "content",
        fs::read_to_string(path)?,
        "one\ntwo\nthree\nfour\n".into(),
    )
}

fn append_threads(dir: &Path) -> Result<()> {
    let path = file(dir, "log", "")?;
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let path = path.clone();
            std::thread::spawn(move || -> Result<()> {
                let mut log = File::options().append(true).open(path)?;
                for line in 0..200 {
                    log.write_all(format!("thread {thread} line {line:04}\n").as_bytes())?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    }
    let content = fs::read_to_string(path)?;
    let mut lines: Vec<&str> = content.lines().collect();
    same("lines", lines.len(), 800)?;
    lines.sort_unstable();
    lines.dedup();
    same("different lines", lines.len(), 800)?;
    same(
        "torn lines",
        lines.iter().filter(|line| line.len() != 18).count(),
        0,
    )
}

fn truncate(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "0123456789")?;
    let file = open(&path)?;
    file.set_len(4)?;
    same("shorter", fs::read_to_string(&path)?, "0123".into())?;
    file.set_len(6)?;
    same("longer again", fs::read(&path)?, b"0123\0\0".to_vec())?;
    File::create(&path)?;
    same("O_TRUNC", file.metadata()?.len(), 0)?;
    fails(
        "truncate what is read-only",
        File::open(&path)?.set_len(1),
        Errno::INVAL,
    )
}

fn read_back(dir: &Path) -> Result<()> {
    let path = dir.join("data");
    let mut file = File::create(&path)?;
    isopod_guest_probe::emit(&mut file, 3_000_001)?;
    drop(file);
    let outcome = isopod_guest_probe::absorb(&mut File::open(&path)?)?;
    same("pattern", outcome, Ok(3_000_001))?;
    // Overwrites at odd places, then everything again.
    let file = open(&path)?;
    for place in [0, 1, 4095, 65_533, 1_000_003, 2_999_990] {
        file.write_all_at(&[0xee; 11], place)?;
    }
    drop(file);
    let content = fs::read(&path)?;
    same("size", content.len(), 3_000_001)?;
    let marked = content
        .get(65_533..65_544)
        .is_some_and(|part| part.iter().all(|b| *b == 0xee));
    same("overwritten", marked, true)
}

fn two_descriptors(dir: &Path) -> Result<()> {
    let path = file(dir, "shared", "aaaa")?;
    let (one, two) = (open(&path)?, open(&path)?);
    one.write_all_at(b"bb", 1)?;
    let mut content = [0; 4];
    two.read_exact_at(&mut content, 0)?;
    same("seen by the other", &content, b"abba")?;
    two.set_len(2)?;
    same("size seen by the first", one.metadata()?.len(), 2)
}

fn sync(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "text")?;
    let file = open(&path)?;
    file.sync_all().context("fsync")?;
    file.sync_data().context("fdatasync")?;
    File::open(dir)?
        .sync_all()
        .context("fsync of a directory")?;
    rustix::fs::syncfs(&file).context("syncfs")
}

fn offsets(dir: &Path) -> Result<()> {
    let mut file = open(&dir.join("file"))?;
    file.write_all(b"0123456789")?;
    same("end", file.stream_position()?, 10)?;
    file.seek(SeekFrom::End(-3))?;
    let mut rest = String::new();
    file.read_to_string(&mut rest)?;
    same("rest", rest, "789".into())?;
    fails(
        "before the start",
        seek(&file, Place::End(-11)),
        Errno::INVAL,
    )?;
    same("read at the end", file.read(&mut [0; 4])?, 0)
}
