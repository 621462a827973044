//! Timed file operations, for the benchmark: the same program measures every file server.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};

fn timed(mut work: impl FnMut() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

/// Creates, stats (twice) and unlinks `count` files in a new directory; microseconds for each pass.
pub fn files(dir: &Path, count: u32) -> Result<Value> {
    let dir = dir.join("many-files");
    fs::create_dir(&dir)?;
    let names: Vec<_> = (0..count)
        .map(|number| dir.join(format!("file-{number:06}")))
        .collect();
    let each =
        |work: &dyn Fn(&Path) -> Result<()>| timed(|| names.iter().try_for_each(|name| work(name)));
    let create = each(&|name| Ok(File::create_new(name).map(drop)?))?;
    // stat(2), as most programs use it: the standard library's statx(2) also asks for the time of birth,
    // which one server has and another has not.
    let stat = each(&|name| Ok(rustix::fs::stat(name).map(drop)?))?;
    let list = timed(|| {
        anyhow::ensure!(
            fs::read_dir(&dir)?.count() == names.len(),
            "the listing is not complete"
        );
        Ok(())
    })?;
    let unlink = each(&|name| Ok(fs::remove_file(name)?))?;
    fs::remove_dir(&dir)?;
    Ok(json!({
        "count": count,
        "create_us": micros(create), "stat_us": micros(stat),
        "list_us": micros(list), "unlink_us": micros(unlink),
    }))
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// Writes and reads `mib` MiB in blocks of 1 MiB, then 4 KiB at pseudo-random places. The guest's page
/// cache is emptied before each read when the container may (`/proc/sys/vm/drop_caches`).
pub fn io(path: &Path, mib: u64) -> Result<Value> {
    const LARGE: usize = 1 << 20;
    const SMALL: usize = 4096;
    let mut block = vec![0; LARGE];
    isopod_guest_probe::fill(&mut block, 0);
    let mut file = File::create(path)?;
    let write = timed(|| {
        for _ in 0..mib {
            file.write_all(&block)?;
        }
        Ok(file.sync_all()?)
    })?;
    drop(file);
    let cold = drop_caches();
    let mut file = File::open(path)?;
    let read = timed(|| {
        while file.read(&mut block)? > 0 {}
        Ok(())
    })?;
    drop(file);
    drop_caches();
    let file = File::options().read(true).write(true).open(path)?;
    let pages = mib * (LARGE as u64) / (SMALL as u64);
    let count = pages.min(4096);
    let small = block.get_mut(..SMALL).unwrap_or_default();
    let place = |number: u64| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % pages) * SMALL as u64;
    let random_read =
        timed(|| (0..count).try_for_each(|number| Ok(file.read_exact_at(small, place(number))?)))?;
    let random_write = timed(|| {
        (0..count).try_for_each(|number| file.write_all_at(small, place(number + 7)))?;
        Ok(file.sync_all()?)
    })?;
    fs::remove_file(path)?;
    let rate = |bytes: u64, took: Duration| bytes as f64 / 1_048_576.0 / took.as_secs_f64();
    let (total, some) = (mib << 20, count * SMALL as u64);
    Ok(json!({
        "mib": mib, "cold": cold, "random_operations": count,
        "write_mib_s": rate(total, write), "read_mib_s": rate(total, read),
        "random_read_mib_s": rate(some, random_read), "random_write_mib_s": rate(some, random_write),
    }))
}

fn drop_caches() -> bool {
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
