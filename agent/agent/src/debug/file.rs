//! Files of /proc and /sys, and the kernel's messages.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
};

use isopod_protocol::debug::ANSWER_LEN;
use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
};

use super::{LookError, unread};

/// Names of a directory that are told.
const NAMES: usize = 10_000;
/// Messages that are looked through: more than the kernel's buffer holds.
const RECORDS: usize = 100_000;
/// Bytes of a record: the kernel's PRINTKRB_RECORD_MAX.
const RECORD: usize = 8192;

/// A file's content, or the names in a directory. What is behind /proc/PID/{root,cwd,exe,fd} is a
/// container's, or the way out of /proc: it is not followed.
pub(super) fn read(path: &str) -> Result<String, LookError> {
    let allowed = ["/proc/", "/sys/"]
        .iter()
        .any(|root| path.starts_with(root));
    if !allowed || path.split('/').any(|part| part == "..") {
        let reason = "only files of /proc and /sys can be read";
        return Err(LookError::Words {
            question: "read",
            reason,
        });
    }
    open(path)
        .and_then(|(opened, kind)| match kind {
            FileType::Directory => names(opened.as_fd()),
            FileType::RegularFile => content(File::from(opened)),
            other => Err(io::Error::other(format!("it is a {other:?}"))),
        })
        .map_err(unread(path))
}

fn open(path: &str) -> io::Result<(OwnedFd, FileType)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let opened = openat2(CWD, path, flags, Mode::empty(), resolve)?;
    let kind = FileType::from_raw_mode(fstat(&opened)?.st_mode);
    Ok((opened, kind))
}

fn content(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    let read = file.take(ANSWER_LEN as u64).read_to_end(&mut bytes);
    match read {
        // /proc/kmsg and its like have no end.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock || bytes.is_empty() => {
            return Err(error);
        }
        _ => {}
    }
    let mut text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn names(directory: std::os::fd::BorrowedFd<'_>) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)?.take(NAMES) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name + "\n");
        }
    }
    names.sort();
    Ok(names.concat())
}

/// The last messages of the kernel, oldest first.
pub(super) fn kernel_messages(most: usize) -> Result<String, LookError> {
    let path = "/dev/kmsg";
    let read = || {
        let (opened, _) = open(path)?;
        let mut lines = VecDeque::new();
        let mut record = [0; RECORD];
        for _ in 0..RECORDS {
            let count = match rustix::io::read(&opened, &mut record) {
                Ok(0) | Err(Errno::AGAIN) => break,
                // Overwritten while they were read.
                Err(Errno::PIPE | Errno::INTR) => continue,
                other => other?,
            };
            let text = String::from_utf8_lossy(record.get(..count).unwrap_or_default());
            lines.extend(message(&text));
            while lines.len() > most {
                lines.pop_front();
            }
        }
        Ok(lines.into_iter().collect())
    };
    read().map_err(unread(path))
}

/// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT` and lines of properties (Documentation/ABI/testing/dev-kmsg).
fn message(record: &str) -> Option<String> {
    let (prefix, rest) = record.split_once(';')?;
    let micros: u64 = prefix.split(',').nth(2)?.parse().ok()?;
    let text = rest.lines().next().unwrap_or_default();
    let mut line = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        line,
        "[{:>5}.{:06}] {text}",
        micros / 1_000_000,
        micros % 1_000_000
    );
    Some(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "6,1,1500000,-;booted\n SUBSYSTEM=x\n",
        Some("[    1.500000] booted\n")
    )]
    #[case("6,1,7,-,more=1;a;b\n", Some("[    0.000007] a;b\n"))]
    #[case("no record", None)]
    #[case("6,1,x,-;a", None)]
    fn records_of_the_kernel(#[case] record: &str, #[case] line: Option<&str>) {
        assert_eq!(message(record).as_deref(), line);
    }

    #[test]
    fn files_and_directories_of_proc_and_sys() {
        assert!(read("/proc/self/status").unwrap().contains("VmRSS"));
        assert!(read("/proc/self").unwrap().contains("status\n"));
        assert!(read("/proc/self/cmdline").unwrap().ends_with('\n'));
        assert!(!read("/sys/").unwrap().is_empty());
    }

    #[rstest]
    #[case("/etc/passwd")]
    #[case("/proc/../etc/passwd")]
    #[case("proc/self/status")]
    #[case("/procx/a")]
    #[case("/proc/self/root/etc/passwd")]
    #[case("/proc/self/cwd/Cargo.toml")]
    #[case("/proc/self/exe")]
    #[case("/proc/self/fd/0")]
    #[case("/proc/no-such-file")]
    fn nothing_else_is_read(#[case] path: &str) {
        assert!(read(path).is_err(), "{path}");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,200}") {
            let _ = message(&text);
        }
    }
}
