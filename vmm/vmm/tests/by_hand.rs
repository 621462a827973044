//! `isopod-vmm run` as somebody at a terminal starts it. Needs root and /dev/kvm, as `process` does.

mod rig;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use rig::{code::COUNT, elf};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A kernel that counts, and an empty image; `None`, with the reason printed, if this machine cannot.
fn place() -> Option<TempDir> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = kvm {
        eprintln!("not tested: /dev/kvm: {error}");
        return None;
    }
    let place = tempfile::tempdir().unwrap();
    let mut kernel = elf(&COUNT);
    kernel.rewind().unwrap();
    let mut to = File::create(place.path().join("kernel")).unwrap();
    io::copy(&mut kernel, &mut to).unwrap();
    let image = File::create(place.path().join("image")).unwrap();
    image.set_len(1 << 20).unwrap();
    Some(place)
}

fn command(place: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isopod-vmm"));
    command
        .current_dir(place)
        .args(["run", "--image", "image", "--memory", "64"])
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A machine at work.
struct Run {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Run {
    fn start(place: &Path, flags: &[&str]) -> Self {
        let mut child = command(place, flags).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    /// All that it says: three lines, and what comes until `signal` has ended it.
    fn end_by(mut self, signal: Signal) -> String {
        let mut said = String::new();
        for _ in 0..3 {
            self.stdout.read_line(&mut said).unwrap();
        }
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.stdout.read_to_string(&mut said).unwrap();
        let status = self.child.wait().unwrap();
        let mut told = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut told).unwrap();
        assert_eq!(status.code(), Some(0), "{told}");
        assert!(told.contains("saved"), "{told}");
        said
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A word of [`COUNT`].
fn number(line: &str) -> u32 {
    assert_eq!(line.len(), 8, "{line:?}");
    line.bytes().fold(0, |number, letter| {
        assert!((b'a'..=b'p').contains(&letter), "{line:?}");
        number << 4 | u32::from(letter - b'a')
    })
}

fn refusal(place: &Path, flags: &[&str]) -> String {
    let Output { status, stderr, .. } = command(place, flags).output().unwrap();
    assert!(matches!(status.code(), Some(1 | 2)), "{status:?}");
    String::from_utf8(stderr).unwrap()
}

#[test]
fn a_machine_is_saved_by_a_signal_and_goes_on_from_there() {
    let Some(place) = place() else { return };
    let place = place.path();
    let start = |flags: &[&str]| Run::start(place, flags);
    let mut said = start(&["--kernel", "kernel", "--save-to", "a"]).end_by(Signal::TERM);
    // Where one was interrupted, maybe in the middle of a word, the next goes on.
    said += &start(&["--restore-from", "a", "--save-to", "b"]).end_by(Signal::INT);
    said += &start(&["--restore-from", "b", "--save-to", "c"]).end_by(Signal::TERM);
    let whole = said.rsplit_once('\n').unwrap().0;
    let numbers: Vec<u32> = whole.lines().map(number).collect();
    assert!(numbers.len() >= 9);
    assert!(
        numbers.iter().copied().eq(1..=numbers.len() as u32),
        "{numbers:?}"
    );

    // The first save is as it was, for one more.
    let again = start(&["--restore-from", "a", "--save-to", "d"]).end_by(Signal::INT);
    assert!(said.contains(again.lines().nth(1).unwrap()));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let Some(place) = place() else { return };
    let place = place.path();
    let told = refusal(place, &["--restore-from", "nowhere"]);
    assert!(told.contains("nowhere/state"), "{told}");
    std::fs::create_dir(place.join("empty")).unwrap();
    for name in ["state", "memory"] {
        File::create(place.join("empty").join(name)).unwrap();
    }
    let told = refusal(place, &["--restore-from", "empty"]);
    assert!(told.contains("state file is not"), "{told}");
    let told = refusal(place, &["--restore-from", "empty", "--kernel", "kernel"]);
    assert!(told.contains("--kernel"), "{told}");
    assert!(refusal(place, &[]).contains("--kernel"));
    let told = refusal(place, &["--kernel", "kernel", "--protocol", "pvh"]);
    assert!(told.contains("no PVH entry"), "{told}");

    Run::start(place, &["--kernel", "kernel", "--save-to", "a"]).end_by(Signal::TERM);
    let told = refusal(place, &["--restore-from", "a", "--save-to", "./a"]);
    assert!(told.contains("restored from it"), "{told}");
    let told = refusal(place, &["--restore-from", "a", "--cpus", "2"]);
    assert!(told.contains("number of processors"), "{told}");
}
