use std::{io::Read, os::fd::OwnedFd, time::Duration};

use super::*;

#[test]
fn dates() {
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000000Z"),
        (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
        (1_709_251_200, "2024-03-01T00:00:00.000000000Z"),
        (1_795_305_600, "2026-11-22T00:00:00.000000000Z"),
        (4_102_444_799, "2099-12-31T23:59:59.000000000Z"),
    ] {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
    }
}

#[test]
fn values_are_quoted_where_needed() {
    for (value, expected) in [
        ("plain-1.2/x", "k=plain-1.2/x "),
        ("", "k=\"\" "),
        ("two words", "k=\"two words\" "),
        ("say \"x\"", "k=\"say \\\"x\\\"\" "),
        ("a\nlevel=error", "k=\"a\\nlevel=error\" "),
        ("\u{1b}[31m", "k=\"\\u{1b}[31m\" "),
    ] {
        let mut line = String::new();
        pair(&mut line, "k", value);
        assert_eq!(line, expected);
    }
}

#[test]
fn long_lines_are_cut_at_a_character() {
    let mut line = "ä".repeat(10);
    cut(&mut line, 5);
    assert_eq!(line, "ää");
}

/// A pipe whose write end is non-blocking, as the fifo is.
fn pipe() -> (File, File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK)
        .map(|(r, w): (OwnedFd, OwnedFd)| (File::from(r), File::from(w)))
        .expect("a pipe");
    (reader, writer)
}

fn read(reader: &mut File) -> String {
    let mut bytes = vec![0; 1 << 20];
    let length = reader.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[test]
fn an_event_becomes_a_line_with_the_identity() {
    let (mut reader, writer) = pipe();
    let log = Log::to(writer, &[("namespace", "default"), ("pod", "p 1")]);
    tracing::subscriber::with_default(log, || {
        tracing::info!(pod = "p 1", container = "c1", code = 3, "container ended");
        tracing::debug!("not shown");
    });
    let text = read(&mut reader);
    let (time, rest) = text.split_once(' ').expect("fields");
    assert!(time.starts_with("time=20"), "{text}");
    assert_eq!(
        rest,
        "level=info msg=\"container ended\" namespace=default pod=\"p 1\" container=c1 code=3\n"
    );
}

#[test]
fn a_full_fifo_drops_lines_and_says_so_later() {
    let (mut reader, writer) = pipe();
    let log = Log::to(writer, &[]);
    for _ in 0..1000 {
        log.write(&log.line(Level::INFO, &"x".repeat(1000), ""));
    }
    assert!(log.dropped.load(Ordering::Relaxed) > 0);
    while !read(&mut reader).is_empty() {}
    log.write(&log.line(Level::INFO, "again", ""));
    let text = read(&mut reader);
    assert!(text.contains("log lines were dropped"), "{text}");
    assert!(text.contains("msg=again"), "{text}");
    assert_eq!(log.dropped.load(Ordering::Relaxed), 0);
}

#[test]
fn the_fifo_needs_no_reader() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let log = Log::open(&path, &[]).expect("opens without a reader");
    log.write("kept\n");
    let mut handle = log.handle().expect("cloned");
    assert_eq!(read(&mut handle), "kept\n");
}
