//! Directories: large ones, and ones that change while they are read.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
};

use anyhow::{Context, Result, bail};

use super::{Check, same};

pub const CHECKS: &[Check] = &[
    ("ten_thousand_entries", many),
    ("kinds_in_listings", kinds),
    ("removing_while_reading", removing),
    ("many_threads_in_one_directory", threads),
];

fn many(dir: &Path) -> Result<()> {
    const COUNT: u32 = 10_000;
    for number in 0..COUNT {
        File::create_new(dir.join(format!("entry-with-a-name-of-some-length-{number:05}")))?;
    }
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !names.insert(name.clone()) {
            bail!("{} is listed twice", name.display());
        }
    }
    same("entries", names.len(), COUNT as usize)?;
    for name in names {
        fs::remove_file(dir.join(&name)).with_context(|| format!("remove {}", name.display()))?;
    }
    same("entries after", fs::read_dir(dir)?.count(), 0)
}

/// Files `0` to `count - 1`, as the host made them: each is listed once, some are looked at, names can
/// come and go.
pub fn large(dir: &Path, count: usize) -> Result<()> {
    let mut seen = vec![false; count];
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<usize>().ok());
        match number.and_then(|number| seen.get_mut(number)) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => bail!("{} is listed twice", name.display()),
            None => bail!("{} is listed", name.display()),
        }
    }
    same("listed", seen.iter().filter(|seen| **seen).count(), count)?;
    for number in (0..count).step_by(count / 1000 + 1) {
        let name = number.to_string();
        same("size", fs::metadata(dir.join(&name))?.len(), 0)?;
        fs::rename(dir.join(&name), dir.join("moved"))?;
        same("there", dir.join(&name).exists(), false)?;
        fs::rename(dir.join("moved"), dir.join(&name))?;
    }
    File::create_new(dir.join("new"))?;
    fs::remove_file(dir.join("new"))?;
    same("entries after", fs::read_dir(dir)?.count(), count)
}

fn kinds(dir: &Path) -> Result<()> {
    File::create(dir.join("file"))?;
    fs::create_dir(dir.join("directory"))?;
    std::os::unix::fs::symlink("file", dir.join("link"))?;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        found.insert((
            entry.file_name(),
            kind.is_file(),
            kind.is_dir(),
            kind.is_symlink(),
        ));
    }
    let expected = BTreeSet::from([
        ("directory".into(), false, true, false),
        ("file".into(), true, false, false),
        ("link".into(), false, false, true),
    ]);
    same("kinds", found, expected)
}

fn removing(dir: &Path) -> Result<()> {
    for number in 0..2000 {
        File::create(dir.join(format!("{number}")))?;
    }
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
    }
    same("left", fs::read_dir(dir)?.count(), 0)
}

fn threads(dir: &Path) -> Result<()> {
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let dir = dir.to_owned();
            std::thread::spawn(move || -> Result<()> {
                for number in 0..150 {
                    let (first, second) = (
                        format!("{worker}-{number}"),
                        format!("{worker}-{number}-moved"),
                    );
                    fs::write(dir.join(&first), &first)?;
                    fs::rename(dir.join(&first), dir.join(&second))?;
                    same("content", fs::read_to_string(dir.join(&second))?, first)?;
                    if number % 3 != 0 {
                        fs::remove_file(dir.join(&second))?;
                    }
                }
                Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker
            .join()
            .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
    }
    same("left", fs::read_dir(dir)?.count(), 200)
}
