//! Attributes: owners, modes, times, extended attributes, permissions.

use std::{
    ffi::CStr,
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{
        AtFlags, CWD, StatxFlags, XattrFlags, getxattr, listxattr, removexattr, setxattr, statvfs,
        statx,
    },
    io::Errno,
};

use super::{Check, fails, file, other_process, same};

pub const CHECKS: &[Check] = &[
    ("owners_and_modes", owners),
    ("set_id_bits_fall_on_chown", set_id),
    ("set_gid_directory", set_gid_directory),
    ("permissions_bind_other_users", permissions),
    ("sticky_directory", sticky),
    ("times", times),
    ("write_changes_times", write_times),
    ("extended_attributes", xattrs),
    ("extended_attribute_sizes", xattr_sizes),
    ("statx", extended_stat),
    ("file_system_statistics", statistics),
    ("link_counts_of_directories", directory_links),
];

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::symlink_metadata(path)?.mode() & 0o7777)
}

fn owners(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "")?;
    for bits in [0, 0o400, 0o644, 0o777, 0o1755, 0o2711, 0o4755, 0o7777] {
        fs::set_permissions(&path, Permissions::from_mode(bits))?;
        same("mode", mode(&path)?, bits)?;
    }
    chown(&path, Some(1234), Some(56_789))?;
    let found = fs::metadata(&path)?;
    same("owner", (found.uid(), found.gid()), (1234, 56_789))?;
    chown(&path, None, Some(3))?;
    same(
        "only the group",
        (fs::metadata(&path)?.uid(), fs::metadata(&path)?.gid()),
        (1234, 3),
    )?;
    symlink("file", dir.join("link"))?;
    lchown(dir.join("link"), Some(77), Some(78))?;
    let link = fs::symlink_metadata(dir.join("link"))?;
    same("owner of the link", (link.uid(), link.gid()), (77, 78))?;
    same("owner of its target", fs::metadata(&path)?.uid(), 1234)
}

fn set_id(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "")?;
    fs::set_permissions(&path, Permissions::from_mode(0o6755))?;
    chown(&path, Some(5), Some(5))?;
    same("mode after chown", mode(&path)?, 0o755)
}

fn set_gid_directory(dir: &Path) -> Result<()> {
    let sub = dir.join("sub");
    fs::create_dir(&sub)?;
    chown(&sub, None, Some(4321))?;
    fs::set_permissions(&sub, Permissions::from_mode(0o2775))?;
    let made = file(&sub, "made", "")?;
    same("group of a file in it", fs::metadata(made)?.gid(), 4321)?;
    fs::create_dir(sub.join("deeper"))?;
    let deeper = fs::metadata(sub.join("deeper"))?;
    same(
        "directory in it",
        (deeper.gid(), deeper.mode() & 0o2000),
        (4321, 0o2000),
    )
}

fn permissions(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "text")?;
    let user = Some(1000);
    for (bits, may) in [(0o600, false), (0o644, false), (0o606, true), (0o666, true)] {
        fs::set_permissions(&path, Permissions::from_mode(bits))?;
        same(
            &format!("user 1000 writes to mode {bits:o}"),
            other_process(user, &["write"], &path)?,
            may,
        )?;
    }
    chown(&path, user, user)?;
    fs::set_permissions(&path, Permissions::from_mode(0o200))?;
    same(
        "user 1000 writes to its own",
        other_process(user, &["write"], &path)?,
        true,
    )?;
    fs::create_dir(dir.join("closed"))?;
    same(
        "creates in root's",
        other_process(user, &["create"], &dir.join("closed/x"))?,
        false,
    )?;
    fs::set_permissions(dir.join("closed"), Permissions::from_mode(0o777))?;
    same(
        "creates in everyone's",
        other_process(user, &["create"], &dir.join("closed/x"))?,
        true,
    )?;
    same(
        "owner of what it made",
        fs::metadata(dir.join("closed/x"))?.uid(),
        1000,
    )
}

fn sticky(dir: &Path) -> Result<()> {
    let sub = dir.join("tmp");
    fs::create_dir(&sub)?;
    fs::set_permissions(&sub, Permissions::from_mode(0o1777))?;
    let path = file(&sub, "roots", "")?;
    same(
        "removes another's",
        other_process(Some(1000), &["remove"], &path)?,
        false,
    )?;
    same(
        "makes its own",
        other_process(Some(1000), &["create"], &sub.join("own"))?,
        true,
    )?;
    same(
        "removes its own",
        other_process(Some(1000), &["remove"], &sub.join("own"))?,
        true,
    )
}

fn times(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "")?;
    let (read, written) = (
        Duration::new(1_000_000_001, 123_456_789),
        Duration::new(1_999_999_999, 987_654_321),
    );
    let times = fs::FileTimes::new()
        .set_accessed(SystemTime::UNIX_EPOCH + read)
        .set_modified(SystemTime::UNIX_EPOCH + written);
    File::options().write(true).open(&path)?.set_times(times)?;
    let found = fs::metadata(&path)?;
    same(
        "read",
        (found.atime(), found.atime_nsec()),
        (1_000_000_001, 123_456_789),
    )?;
    same(
        "written",
        (found.mtime(), found.mtime_nsec()),
        (1_999_999_999, 987_654_321),
    )
}

fn write_times(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "")?;
    let old = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(5));
    File::options().write(true).open(&path)?.set_times(old)?;
    fs::write(&path, "new")?;
    let found = fs::metadata(&path)?;
    if found.mtime() < 1_000_000_000 {
        bail!("a write left the time at {}", found.mtime());
    }
    let before = (found.ctime(), found.ctime_nsec());
    std::thread::sleep(Duration::from_millis(30));
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    let after = fs::metadata(&path)?;
    same("mtime after chmod", after.mtime(), found.mtime())?;
    if (after.ctime(), after.ctime_nsec()) <= before {
        bail!("chmod left the time of change at {before:?}");
    }
    Ok(())
}

fn value(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let size = getxattr(path, name, &mut buffer).with_context(|| format!("get {name}"))?;
    buffer.truncate(size);
    Ok(buffer)
}

fn xattrs(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "")?;
    let set = |name: &str, value: &[u8], flags| setxattr(&path, name, value, flags);
    set("user.one", b"1", XattrFlags::empty()).context("set")?;
    set("user.empty", b"", XattrFlags::CREATE).context("set an empty one")?;
    fails(
        "CREATE over",
        set("user.one", b"2", XattrFlags::CREATE),
        Errno::EXIST,
    )?;
    fails(
        "REPLACE of none",
        set("user.two", b"2", XattrFlags::REPLACE),
        Errno::NODATA,
    )?;
    set("user.one", b"\0binary\xff", XattrFlags::REPLACE).context("replace")?;
    same("value", value(&path, "user.one")?, b"\0binary\xff".to_vec())?;
    same("empty value", value(&path, "user.empty")?, Vec::new())?;
    let mut buffer = vec![0; 4096];
    let size = listxattr(&path, &mut buffer)?;
    let listed = buffer.get(..size).unwrap_or_default();
    let mut names: Vec<&[u8]> = listed.split_inclusive(|byte| *byte == 0).collect();
    names.retain(|name| name.starts_with(b"user."));
    names.sort_unstable();
    let expected: [&CStr; 2] = [c"user.empty", c"user.one"];
    same(
        "names",
        names,
        expected.map(CStr::to_bytes_with_nul).to_vec(),
    )?;
    removexattr(&path, "user.one").context("remove")?;
    fails(
        "get a removed one",
        getxattr(&path, "user.one", &mut buffer[..]),
        Errno::NODATA,
    )?;
    fails(
        "remove it again",
        removexattr(&path, "user.one"),
        Errno::NODATA,
    )?;
    fs::create_dir(dir.join("sub"))?;
    setxattr(dir.join("sub"), "user.dir", b"yes", XattrFlags::empty()).context("on a directory")?;
    same(
        "of a directory",
        value(&dir.join("sub"), "user.dir")?,
        b"yes".to_vec(),
    )
}

fn xattr_sizes(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "")?;
    let large = vec![b'v'; 3000];
    setxattr(&path, "user.large", &large, XattrFlags::empty()).context("3000 bytes")?;
    same("value", value(&path, "user.large")?, large)?;
    fails(
        "too small a buffer",
        getxattr(&path, "user.large", &mut [0_u8; 10][..]),
        Errno::RANGE,
    )?;
    let long = format!("user.{}", "n".repeat(251));
    fails(
        "256 bytes of name",
        setxattr(&path, &long, b"", XattrFlags::empty()),
        Errno::RANGE,
    )
}

fn extended_stat(dir: &Path) -> Result<()> {
    let path = file(dir, "file", "12345")?;
    let found = statx(CWD, &path, AtFlags::empty(), StatxFlags::BASIC_STATS).context("statx")?;
    let plain = fs::metadata(&path)?;
    same("inode", found.stx_ino, plain.ino())?;
    same("size", found.stx_size, 5)?;
    same("links", found.stx_nlink, 1)?;
    if !StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BASIC_STATS) {
        bail!("mask {:x} lacks basic fields", found.stx_mask);
    }
    // Inode numbers are stable while the file lives.
    let again = statx(CWD, &path, AtFlags::empty(), StatxFlags::INO)?;
    same("inode again", again.stx_ino, found.stx_ino)
}

fn statistics(dir: &Path) -> Result<()> {
    let found = statvfs(dir).context("statvfs")?;
    if found.f_blocks == 0 || found.f_bsize == 0 || found.f_files == 0 {
        bail!(
            "{} blocks of {} bytes, {} files",
            found.f_blocks,
            found.f_bsize,
            found.f_files
        );
    }
    same("longest name", found.f_namemax, 255)
}

fn directory_links(dir: &Path) -> Result<()> {
    let sub = dir.join("sub");
    fs::create_dir(&sub)?;
    let before = fs::metadata(&sub)?.nlink();
    fs::create_dir(sub.join("one"))?;
    let during = fs::metadata(&sub)?.nlink();
    fs::remove_dir(sub.join("one"))?;
    let after = fs::metadata(&sub)?.nlink();
    // overlayfs and btrfs always say 1.
    if (before, during, after) != (2, 3, 2) && (before, during, after) != (1, 1, 1) {
        bail!("{before}, then {during}, then {after}");
    }
    Ok(())
}
