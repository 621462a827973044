use std::{
    fs::File,
    io::{Read, Write},
    thread,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use super::*;

const LOGGED: Logged<'static> = Logged {
    namespace: "k8s.io",
    container: "c1",
};

struct Fixture {
    directory: tempfile::TempDir,
    paths: Paths,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = |name: &str| {
        let path = directory.path().join(name);
        mkfifo(&path, Mode::S_IRWXU).expect("a fifo");
        path.display().to_string()
    };
    let paths = Paths {
        terminal: false,
        stdin: fifo("in"),
        stdout: fifo("out"),
        stderr: fifo("err"),
    };
    Fixture { directory, paths }
}

/// The sandbox's ends, and the process's.
fn sockets() -> (Stdio, [UnixStream; 3]) {
    let pair = || UnixStream::pair().expect("a pair");
    let ((a, x), (b, y), (c, z)) = (pair(), pair(), pair());
    let stdio = Stdio {
        stdin: Some(a),
        stdout: Some(b),
        stderr: Some(c),
    };
    (stdio, [x, y, z])
}

/// Reads a fifo to its end in a thread, as a client does.
fn client(path: &str) -> thread::JoinHandle<Vec<u8>> {
    let path = path.to_owned();
    thread::spawn(move || {
        let mut all = Vec::new();
        let mut file = File::open(path).expect("opens");
        file.read_to_end(&mut all).expect("reads");
        all
    })
}

async fn joined(client: thread::JoinHandle<Vec<u8>>) -> Vec<u8> {
    tokio::task::spawn_blocking(|| client.join().expect("no panic"))
        .await
        .expect("no panic")
}

#[test]
fn targets() {
    for (text, expected) in [
        ("/run/x", Ok(Target::Path(Path::new("/run/x")))),
        ("fifo:///run/x", Ok(Target::Path(Path::new("/run/x")))),
        ("file:///var/x", Ok(Target::File(Path::new("/var/x")))),
        (
            "binary:///bin/log?id=1",
            Ok(Target::Program("binary:///bin/log?id=1")),
        ),
        ("ttrpc+unix:///x", Err("not known")),
    ] {
        match (Target::parse(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(part)) => assert!(found.to_string().contains(part), "{found}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
}

#[test]
fn a_terminal_has_no_stderr() {
    let mut paths = Paths {
        stdout: "/o".into(),
        stderr: "/e".into(),
        ..Paths::default()
    };
    assert!(paths.request().stderr);
    paths.terminal = true;
    assert!(!paths.request().stderr && paths.request().stdout && !paths.request().stdin);
}

#[tokio::test]
async fn output_arrives_whole_and_apart() {
    let fixture = fixture();
    let (stdio, [_stdin, mut stdout, mut stderr]) = sockets();
    let opened = Opened::open(&fixture.paths, LOGGED)
        .await
        .expect("opens without a client");
    let copies = opened.connect(stdio);
    let (out, err) = (client(&fixture.paths.stdout), client(&fixture.paths.stderr));
    let data: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    stdout.write_all(&data).await.expect("writes");
    stderr.write_all(b"oops").await.expect("writes");
    drop((stdout, stderr));
    copies.drain(Duration::from_secs(10)).await;
    assert_eq!(joined(out).await, data);
    assert_eq!(joined(err).await, b"oops");
}

#[tokio::test]
async fn input_ends_after_close_io_and_the_last_writer() {
    let fixture = fixture();
    let (stdio, [mut stdin, _stdout, _stderr]) = sockets();
    let opened = Opened::open(&fixture.paths, LOGGED).await.expect("opens");
    let mut copies = opened.connect(stdio);
    let mut writer = File::options()
        .write(true)
        .open(&fixture.paths.stdin)
        .expect("opens");
    writer.write_all(b"one").expect("writes");
    drop(writer);
    let mut three = [0; 3];
    stdin.read_exact(&mut three).await.expect("reads");
    // The writer went, as with a restarted containerd: no end of file.
    let end = time::timeout(Duration::from_millis(50), stdin.read(&mut three)).await;
    assert!(end.is_err(), "{end:?}");
    let mut writer = File::options()
        .write(true)
        .open(&fixture.paths.stdin)
        .expect("opens");
    copies.close_input();
    writer.write_all(b"two").expect("writes");
    drop(writer);
    let mut rest = Vec::new();
    stdin.read_to_end(&mut rest).await.expect("reads");
    assert_eq!(rest, b"two");
}

#[tokio::test]
async fn an_execs_input_has_no_reader_before_its_start() {
    let fixture = fixture();
    let (stdio, [mut stdin, _stdout, _stderr]) = sockets();
    let opened = Opened::open_outputs(&fixture.paths, LOGGED)
        .await
        .expect("opens");
    let mut copies = opened.connect(stdio);
    // A client's end of file must not be over before it could say that it closes the input.
    let early = pipe::OpenOptions::new().open_sender(&fixture.paths.stdin);
    assert!(early.is_err(), "somebody reads already");
    copies.begin_input(&fixture.paths).expect("begins");
    let mut writer = File::options()
        .write(true)
        .open(&fixture.paths.stdin)
        .expect("opens");
    writer.write_all(b"text").expect("writes");
    drop(writer);
    copies.close_input();
    let mut all = Vec::new();
    stdin.read_to_end(&mut all).await.expect("reads");
    assert_eq!(all, b"text");
}

#[tokio::test]
async fn a_reader_that_comes_back_misses_nothing() {
    let fixture = fixture();
    let (stdio, [_stdin, mut stdout, _stderr]) = sockets();
    let _copies = Opened::open(&fixture.paths, LOGGED)
        .await
        .expect("opens")
        .connect(stdio);
    stdout.write_all(b"before").await.expect("writes");
    time::sleep(Duration::from_millis(50)).await;
    let mut first = File::open(&fixture.paths.stdout).expect("opens");
    let mut six = [0; 6];
    first.read_exact(&mut six).expect("reads");
    drop(first);
    stdout.write_all(b"after").await.expect("writes");
    let out = client(&fixture.paths.stdout);
    time::sleep(Duration::from_millis(50)).await;
    drop(stdout);
    assert_eq!(joined(out).await, b"after");
}

#[tokio::test]
async fn draining_gives_up_on_a_stuck_reader() {
    let fixture = fixture();
    let (stdio, [_stdin, mut stdout, stderr]) = sockets();
    let copies = Opened::open(&fixture.paths, LOGGED)
        .await
        .expect("opens")
        .connect(stdio);
    drop(stderr);
    let much = vec![b'x'; 4 << 20];
    let filled = time::timeout(Duration::from_millis(200), stdout.write_all(&much));
    assert!(filled.await.is_err());
    let before = time::Instant::now();
    copies.drain(Duration::from_millis(100)).await;
    assert!(before.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_file_is_appended_to_and_made() {
    let fixture = fixture();
    let log = fixture.directory.path().join("log");
    let paths = Paths {
        stdout: format!("file://{}", log.display()),
        ..Paths::default()
    };
    for _ in 0..2 {
        let (stdio, [_stdin, mut stdout, _stderr]) = sockets();
        let copies = Opened::open(&paths, LOGGED)
            .await
            .expect("opens")
            .connect(stdio);
        stdout.write_all(b"line\n").await.expect("writes");
        drop(stdout);
        copies.drain(Duration::from_secs(10)).await;
    }
    assert_eq!(std::fs::read(&log).expect("reads"), b"line\nline\n");
}

#[tokio::test]
async fn what_is_missing_is_an_error() {
    let paths = Paths {
        stdout: "/nonexistent/out".into(),
        ..Paths::default()
    };
    let error = Opened::open(&paths, LOGGED)
        .await
        .err()
        .map(|error| error.to_string());
    assert!(error.is_some_and(|text| text.contains("/nonexistent/out")));
}

/// A shell script as a logging program.
fn logger(script: &str) -> String {
    let script: String =
        percent_encoding::utf8_percent_encode(script, percent_encoding::NON_ALPHANUMERIC).collect();
    format!("binary:///bin/sh?-c={script}")
}

#[tokio::test]
async fn a_logging_program_gets_both_outputs_and_knows_whose() {
    let directory = tempfile::tempdir().expect("a directory");
    let dir = directory.path().display();
    let script = format!(
        "cd {dir}; exec 5>&-; echo $CONTAINER_NAMESPACE/$CONTAINER_ID > who; \
         cat <&4 > err & cat <&3 > out; wait"
    );
    let uri = logger(&script);
    let paths = Paths {
        stdout: uri.clone(),
        stderr: uri,
        ..Paths::default()
    };
    let (stdio, [_stdin, mut stdout, mut stderr]) = sockets();
    let copies = Opened::open(&paths, LOGGED)
        .await
        .expect("opens")
        .connect(stdio);
    let data: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    stdout.write_all(&data).await.expect("writes");
    stderr.write_all(b"oops").await.expect("writes");
    drop((stdout, stderr));
    // Returns when the program has ended, so all is written.
    copies.drain(Duration::from_secs(10)).await;
    let read = |name: &str| std::fs::read(directory.path().join(name)).expect("reads");
    assert_eq!(read("out"), data);
    assert_eq!(read("err"), b"oops");
    assert_eq!(read("who"), b"k8s.io/c1\n");
}

#[tokio::test]
async fn a_logging_program_that_dies_does_not_hold_the_process() {
    let paths = Paths {
        stdout: logger("exit 1"),
        ..Paths::default()
    };
    let (stdio, [_stdin, mut stdout, _stderr]) = sockets();
    let copies = Opened::open(&paths, LOGGED)
        .await
        .expect("opens")
        .connect(stdio);
    let much = vec![b'x'; 4 << 20];
    let written = stdout.write_all(&much);
    let written = time::timeout(Duration::from_secs(30), written).await;
    written.expect("nobody holds it").expect("writes");
    drop(stdout);
    copies.drain(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_logging_program_that_is_never_ready_is_an_error() {
    let paths = Paths {
        stdout: logger("exec sleep 1000"),
        ..Paths::default()
    };
    let error = Opened::open(&paths, LOGGED).await.err().expect("an error");
    assert!(error.to_string().contains("not ready"), "{error}");
}

#[tokio::test]
async fn standard_error_alone_has_no_logging_program() {
    let paths = Paths {
        stderr: logger("exit 0"),
        ..Paths::default()
    };
    let error = Opened::open(&paths, LOGGED).await.err().expect("an error");
    assert!(error.to_string().contains("reads both outputs"), "{error}");
}
