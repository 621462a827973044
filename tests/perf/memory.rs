//! What an idle pod takes of the host's memory.

use std::time::Duration;

use anyhow::{Context, Result};
use isopod_tests::{Bed, procfs};

use crate::table::{Goal, Row};

pub fn measure(bed: &Bed) -> Result<Vec<Row>> {
    let container = bed.container().sleeping()?;
    container.exec(["true"])?.ok()?;
    std::thread::sleep(Duration::from_secs(2));
    let pss = |program: &str| -> Result<f64> {
        let found = procfs::named(program)?;
        let process = found
            .first()
            .with_context(|| format!("{program} does not run"))?;
        Ok(procfs::pss_kib(process.pid)? as f64 / 1024.0)
    };
    let shim = pss("containerd-shim-isopod-v2")?;
    let rows = vec![
        Row::new("shim (PSS)", "MiB", shim).goal(Goal::AtMost(8.0)),
        Row::new("isopod-fs (PSS)", "MiB", pss("isopod-fs")?),
        Row::new(
            "QEMU with the guest (PSS)",
            "MiB",
            pss("qemu-system-x86_64")?,
        ),
    ];
    container.end()?;
    let mut runc = bed.ctr();
    runc.args([
        "run",
        "--detach",
        "--null-io",
        isopod_tests::bed::IMAGE,
        "runc",
        "sleep",
        "100000",
    ]);
    isopod_tests::process::run(&mut runc, None, Duration::from_secs(60))?.ok()?;
    std::thread::sleep(Duration::from_secs(1));
    let theirs = pss("containerd-shim-runc-v2")?;
    isopod_tests::Container::existing(bed, "runc").end()?;
    let mut rows = rows;
    if let Some(first) = rows.first_mut() {
        first.other = Some(("runc's shim", theirs));
    }
    Ok(rows)
}
