//! Names: links, symbolic links, renames, special files, lengths.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    os::unix::{fs::MetadataExt, fs::symlink, net::UnixListener, net::UnixStream},
    path::Path,
};

use anyhow::{Context, Result};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, makedev, mknodat, open, openat,
        renameat_with,
    },
    io::Errno,
};

use super::{Check, fails, file, same};

pub const CHECKS: &[Check] = &[
    ("hard_links", hard_links),
    ("symbolic_links", symbolic_links),
    ("rename", rename),
    ("rename_flags", rename_flags),
    ("unlinked_files_live_on", unlinked),
    ("anonymous_files", anonymous),
    ("long_names", long_names),
    ("any_byte_in_names", any_byte),
    ("fifos", fifos),
    ("sockets", sockets),
    ("device_nodes", devices),
    ("errors", errors),
];

fn hard_links(dir: &Path) -> Result<()> {
    let one = file(dir, "one", "text")?;
    let two = dir.join("two");
    fs::hard_link(&one, &two)?;
    let (a, b) = (fs::metadata(&one)?, fs::metadata(&two)?);
    same("inode", b.ino(), a.ino())?;
    same("links", b.nlink(), 2)?;
    fs::write(&two, "changed")?;
    same("content", fs::read_to_string(&one)?, "changed".into())?;
    fs::remove_file(&one)?;
    same("links after unlink", fs::metadata(&two)?.nlink(), 1)?;
    fails(
        "link to a missing file",
        fs::hard_link(&one, dir.join("x")),
        Errno::NOENT,
    )?;
    fails("link over a file", fs::hard_link(&two, &two), Errno::EXIST)?;
    fs::create_dir(dir.join("sub"))?;
    fails(
        "link to a directory",
        fs::hard_link(dir.join("sub"), dir.join("x")),
        Errno::PERM,
    )
}

fn symbolic_links(dir: &Path) -> Result<()> {
    file(dir, "target", "text")?;
    symlink("target", dir.join("link"))?;
    same(
        "content through the link",
        fs::read_to_string(dir.join("link"))?,
        "text".into(),
    )?;
    same("target", fs::read_link(dir.join("link"))?, "target".into())?;
    same("size", fs::symlink_metadata(dir.join("link"))?.len(), 6)?;
    symlink("nowhere", dir.join("dangling"))?;
    fails(
        "open a dangling link",
        File::open(dir.join("dangling")),
        Errno::NOENT,
    )?;
    symlink("loop", dir.join("loop"))?;
    fails("open a loop", File::open(dir.join("loop")), Errno::LOOP)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
    fails(
        "open without following",
        open(dir.join("link"), flags, Mode::empty()),
        Errno::LOOP,
    )?;
    let long = "x/".repeat(2000);
    symlink(&long, dir.join("long"))?;
    same("long target", fs::read_link(dir.join("long"))?, long.into())?;
    symlink("/proc/self/../../absolute", dir.join("absolute"))?;
    same(
        "absolute target",
        fs::read_link(dir.join("absolute"))?,
        "/proc/self/../../absolute".into(),
    )?;
    fails(
        "read a file as a link",
        fs::read_link(dir.join("target")),
        Errno::INVAL,
    )
}

fn rename(dir: &Path) -> Result<()> {
    let (one, two) = (file(dir, "one", "1")?, file(dir, "two", "2")?);
    let mut opened = File::open(&two)?;
    fs::rename(&one, &two)?;
    same("content", fs::read_to_string(&two)?, "1".into())?;
    let mut old = String::new();
    opened.read_to_string(&mut old)?;
    same("content of the replaced file", old, "2".into())?;
    fails("the old name", fs::metadata(&one), Errno::NOENT)?;
    fs::create_dir_all(dir.join("a/b"))?;
    fails(
        "a directory into itself",
        fs::rename(dir.join("a"), dir.join("a/b/c")),
        Errno::INVAL,
    )?;
    fs::create_dir(dir.join("empty"))?;
    fails(
        "over a full directory",
        fs::rename(dir.join("empty"), dir.join("a")),
        Errno::NOTEMPTY,
    )?;
    fails(
        "a directory over a file",
        fs::rename(dir.join("a"), &two),
        Errno::NOTDIR,
    )?;
    fails(
        "a file over a directory",
        fs::rename(&two, dir.join("a")),
        Errno::ISDIR,
    )?;
    fs::rename(dir.join("a"), dir.join("empty"))?;
    fs::metadata(dir.join("empty/b"))?;
    // An open file follows its name.
    let mut log = File::create(dir.join("log"))?;
    log.write_all(b"before ")?;
    fs::rename(dir.join("log"), dir.join("log.1"))?;
    log.write_all(b"after")?;
    same(
        "moved log",
        fs::read_to_string(dir.join("log.1"))?,
        "before after".into(),
    )
}

fn rename_flags(dir: &Path) -> Result<()> {
    let (one, two) = (file(dir, "one", "1")?, file(dir, "two", "2")?);
    let outcome = renameat_with(CWD, &one, CWD, &two, RenameFlags::NOREPLACE);
    fails("NOREPLACE over a file", outcome, Errno::EXIST)?;
    renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).context("EXCHANGE")?;
    same("one", fs::read_to_string(&one)?, "2".into())?;
    same("two", fs::read_to_string(&two)?, "1".into())?;
    let outcome = renameat_with(CWD, &one, CWD, dir.join("none"), RenameFlags::EXCHANGE);
    fails("EXCHANGE with nothing", outcome, Errno::NOENT)?;
    renameat_with(CWD, &one, CWD, dir.join("three"), RenameFlags::NOREPLACE)
        .context("NOREPLACE")?;
    same("three", fs::read_to_string(dir.join("three"))?, "2".into())?;
    fs::create_dir(dir.join("sub"))?;
    renameat_with(CWD, &two, CWD, dir.join("sub"), RenameFlags::EXCHANGE)
        .context("file and directory")?;
    same(
        "exchanged kinds",
        (
            fs::metadata(&two)?.is_dir(),
            fs::metadata(dir.join("sub"))?.is_file(),
        ),
        (true, true),
    )
}

fn unlinked(dir: &Path) -> Result<()> {
    let path = dir.join("gone");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    file.write_all(b"still ")?;
    fs::remove_file(&path)?;
    file.write_all(b"here")?;
    same("links", file.metadata()?.nlink(), 0)?;
    use std::os::unix::fs::FileExt;
    let mut content = [0; 10];
    file.read_exact_at(&mut content, 0)?;
    same("content", &content, b"still here")?;
    file.set_len(3)?;
    same("size", file.metadata()?.len(), 3)?;
    fails("the name", fs::metadata(&path), Errno::NOENT)
}

fn anonymous(dir: &Path) -> Result<()> {
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let fd = openat(CWD, dir, flags, Mode::from_raw_mode(0o600)).context("O_TMPFILE")?;
    let mut file = File::from(fd);
    file.write_all(b"appears whole")?;
    same("links", file.metadata()?.nlink(), 0)?;
    same("names", fs::read_dir(dir)?.count(), 0)?;
    use std::os::fd::AsRawFd;
    let magic = format!("/proc/self/fd/{}", file.as_raw_fd());
    let name = dir.join("named");
    linkat(CWD, &magic, CWD, &name, AtFlags::SYMLINK_FOLLOW).context("give it a name")?;
    same("content", fs::read_to_string(name)?, "appears whole".into())?;
    same("links after linkat", file.metadata()?.nlink(), 1)
}

fn long_names(dir: &Path) -> Result<()> {
    let name = "n".repeat(255);
    file(dir, &name, "text")?;
    same(
        "content",
        fs::read_to_string(dir.join(&name))?,
        "text".into(),
    )?;
    let listed: Vec<OsString> = fs::read_dir(dir)?
        .map(|entry| entry.map(|e| e.file_name()))
        .collect::<Result<_, _>>()?;
    same("listing", listed, vec![OsString::from(&name)])?;
    fails(
        "256 bytes",
        File::create(dir.join("n".repeat(256))),
        Errno::NAMETOOLONG,
    )?;
    let mut deep = dir.to_owned();
    for _ in 0..60 {
        deep.push("d".repeat(30));
        fs::create_dir(&deep)?;
    }
    file(&deep, "bottom", "deep")?;
    same(
        "deep content",
        fs::read_to_string(deep.join("bottom"))?,
        "deep".into(),
    )
}

fn any_byte(dir: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStringExt;
    let odd = (1..=255_u8).filter(|byte| *byte != b'/');
    for byte in odd.clone() {
        File::create(dir.join(OsString::from_vec(vec![b'x', byte])))?;
    }
    let mut listed = Vec::new();
    for entry in fs::read_dir(dir)? {
        listed.push(entry?.file_name().into_vec());
    }
    listed.sort_unstable();
    same("names", listed, odd.map(|byte| vec![b'x', byte]).collect())
}

fn fifos(dir: &Path) -> Result<()> {
    let path = dir.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).context("make a fifo")?;
    let from = path.clone();
    let reader = std::thread::spawn(move || fs::read_to_string(from));
    fs::OpenOptions::new()
        .write(true)
        .open(&path)?
        .write_all(b"through")?;
    let read = reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    same("read", read, "through".into())
}

fn sockets(dir: &Path) -> Result<()> {
    let listener = UnixListener::bind(dir.join("socket")).context("bind")?;
    let mut client = UnixStream::connect(dir.join("socket")).context("connect")?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"hi")?;
    drop(client);
    let mut text = String::new();
    server.read_to_string(&mut text)?;
    same("read", text, "hi".into())?;
    fails(
        "bind again",
        UnixListener::bind(dir.join("socket")),
        Errno::ADDRINUSE,
    )
}

fn devices(dir: &Path) -> Result<()> {
    let path = dir.join("null");
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, &path, FileType::CharacterDevice, mode, makedev(1, 3))
        .context("make a device node")?;
    same("number", fs::metadata(&path)?.rdev(), makedev(1, 3))
}

fn errors(dir: &Path) -> Result<()> {
    let plain = file(dir, "plain", "")?;
    fs::create_dir_all(dir.join("full/sub"))?;
    fails(
        "open a missing file",
        File::open(dir.join("none")),
        Errno::NOENT,
    )?;
    fails(
        "a missing parent",
        File::create(dir.join("none/x")),
        Errno::NOENT,
    )?;
    fails(
        "a file as a parent",
        File::create(plain.join("x")),
        Errno::NOTDIR,
    )?;
    fails(
        "write a directory",
        File::options().write(true).open(dir.join("full")),
        Errno::ISDIR,
    )?;
    fails("create over", File::create_new(&plain), Errno::EXIST)?;
    fails("mkdir over", fs::create_dir(&plain), Errno::EXIST)?;
    fails(
        "rmdir a full directory",
        fs::remove_dir(dir.join("full")),
        Errno::NOTEMPTY,
    )?;
    fails("rmdir a file", fs::remove_dir(&plain), Errno::NOTDIR)?;
    fails(
        "unlink a directory",
        fs::remove_file(dir.join("full")),
        Errno::ISDIR,
    )?;
    fails("list a file", fs::read_dir(&plain), Errno::NOTDIR)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    fails(
        "O_DIRECTORY",
        open(&plain, flags, Mode::empty()),
        Errno::NOTDIR,
    )?;
    fails(
        "another file system",
        fs::hard_link(&plain, "/dev/shm/x"),
        Errno::XDEV,
    )
}
