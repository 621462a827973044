//! What files in a container do, by the probe: the same checks on both runtimes, on ext4 and on overlayfs.

use std::time::Duration;

use anyhow::{Result, bail};
use isopod_tests::{Bed, Case, Finished, check_eq, probe::PATH};

/// The cases.
pub const CASES: &[Case] = &[
    Case::both("on_a_volume", volume).with_probe().within(480),
    Case::both("on_the_root_filesystem", root)
        .with_probe()
        .within(480),
    Case::both("host_sees_the_same_files", host_sees).with_probe(),
    Case::both("a_million_entries_in_a_directory", million)
        .with_probe()
        .alone()
        .within(480),
];

/// 20 000 files take their time in a software CPU.
const LONG: Duration = Duration::from_secs(450);

/// Fails with the checks that failed, and when there were too few to be true.
fn judge(run: &Finished) -> Result<()> {
    let lines: Vec<serde_json::Value> = run
        .out()
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let failed: Vec<String> = lines
        .iter()
        .filter(|line| !line["error"].is_null())
        .map(|line| format!("{}: {}", line["check"], line["error"]))
        .collect();
    if !failed.is_empty() {
        bail!(
            "{} of {} checks failed:\n  {}",
            failed.len(),
            lines.len(),
            failed.join("\n  ")
        );
    }
    if run.code != 0 || lines.len() < 40 {
        bail!("code {}, {} checks: {}", run.code, lines.len(), run.err());
    }
    Ok(())
}

fn volume(bed: &Bed) -> Result<()> {
    let volume = bed.volume()?;
    judge(
        &bed.container()
            .bind(&volume, "/data", "rw")
            .limit(LONG)
            .run([PATH, "posix", "/data"])?,
    )?;
    check_eq!(
        std::fs::read_dir(volume)?.count(),
        0,
        "what the checks left"
    );
    Ok(())
}

fn root(bed: &Bed) -> Result<()> {
    judge(&bed.container().limit(LONG).run([PATH, "posix", "/var"])?)
}

fn host_sees(bed: &Bed) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let volume = bed.volume()?;
    let script = format!(
        "cd /data && {PATH} emit 1000001 > big && ln big hard && ln -s big soft && mkfifo fifo && \
         mkdir -m 1750 dir && chown 7:8 dir && truncate -s 5G sparse && stat -c '%i' big"
    );
    let run = bed
        .container()
        .bind(&volume, "/data", "rw")
        .run(["sh", "-c", &script])?
        .ok()?;
    let big = std::fs::metadata(volume.join("big"))?;
    check_eq!(
        run.out().trim(),
        big.ino().to_string(),
        "the inode number inside and outside"
    );
    check_eq!((big.len(), big.nlink()), (1_000_001, 2));
    let mut file = std::fs::File::open(volume.join("hard"))?;
    check_eq!(isopod_guest_probe::absorb(&mut file)?, Ok(1_000_001));
    check_eq!(
        std::fs::read_link(volume.join("soft"))?
            .display()
            .to_string(),
        "big"
    );
    let dir = std::fs::metadata(volume.join("dir"))?;
    check_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777), (7, 8, 0o1750));
    let sparse = std::fs::metadata(volume.join("sparse"))?;
    check_eq!((sparse.len(), sparse.blocks()), (5 << 30, 0));
    Ok(())
}

fn million(bed: &Bed) -> Result<()> {
    const COUNT: u32 = 1_000_000;
    let volume = bed.volume()?;
    let dir = std::fs::File::open(&volume)?;
    for number in 0..COUNT {
        // The quickest way to a file: no descriptor.
        nix::sys::stat::mknodat(
            &dir,
            number.to_string().as_str(),
            nix::sys::stat::SFlag::S_IFREG,
            nix::sys::stat::Mode::S_IRUSR,
            0,
        )?;
    }
    let run = bed.container().bind(&volume, "/data", "rw").limit(LONG);
    run.run([PATH, "entries", "/data", &COUNT.to_string()])?
        .ok()
        .map(drop)
}
