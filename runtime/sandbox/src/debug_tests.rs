//! A person's questions, and guests that answer as they like.

use std::os::fd::AsFd as _;

use rstest::rstest;
use tokio::net::UnixListener;

use super::*;

#[rstest]
#[case(b"+a\tb\n\0", Some((true, "a\tb\n")))]
#[case(b"-no such thing\0", Some((false, "no such thing")))]
#[case(b"+\0", Some((true, "")))]
// ESC ] 0 ; ... BEL names a window, CSI moves the cursor, 0x9b begins it in one byte.
#[case(b"+\x1b]0;x\x07\x1b[2J\x7f\r\xc2\x9b\0", Some((true, "?]0;x??[2J???")))]
#[case(b"+\xff\xfe\0", Some((true, "\u{fffd}\u{fffd}")))]
#[case(b"", None)]
#[case(b"\0", None)]
#[case(b"+cut", None)]
#[case(b"ok\0", None)]
fn an_answer_is_text(#[case] bytes: &[u8], #[case] expected: Option<(bool, &str)>) {
    let found = decode(bytes).ok();
    let found = found.as_ref().map(|a| (a.done, a.text.as_str()));
    assert_eq!(found, expected);
}

/// Where a pod's socket is, and settings that lead there.
fn place() -> (tempfile::TempDir, Settings, PodPaths) {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.paths.state = dir.path().to_owned();
    let paths = PodPaths::new(dir.path(), "ns", "pod");
    std::fs::create_dir(&paths.dir).unwrap();
    (dir, settings, paths)
}

/// Answers a connection with `said`, in turns with what it reads.
async fn guest(listener: UnixListener, said: Vec<Vec<u8>>) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    for said in said {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        // It may have left in the middle.
        let _ = stream.get_mut().write_all(&said).await;
    }
}

#[tokio::test]
async fn questions_are_answered_in_turns() {
    let (_dir, settings, paths) = place();
    let listener = UnixListener::bind(paths.vsock()).unwrap();
    let said = vec![
        b"OK 1\n".to_vec(),
        b"+one\0".to_vec(),
        b"-two\0".to_vec(),
        vec![b'+'; ANSWER_LEN + 10],
    ];
    let serving = tokio::spawn(guest(listener, said));
    let mut console = Console::open(&settings, "ns", "pod").await.unwrap();
    assert_eq!(console.ask("a").await.unwrap().text, "one");
    assert!(!console.ask("b").await.unwrap().done);
    for wrong in ["a\nb".to_owned(), "a".repeat(LINE_LEN)] {
        let refused = console.ask(&wrong).await.unwrap_err();
        assert!(matches!(refused, DebugError::Question));
    }
    let endless = console.ask("c").await.unwrap_err();
    assert!(matches!(endless, DebugError::Answer(_)), "{endless}");
    drop(console);
    serving.await.unwrap();
}

#[tokio::test]
async fn a_guest_that_does_not_listen_is_told_from_no_pod() {
    let (_dir, settings, paths) = place();
    let none = Console::open(&settings, "ns", "pod").await.unwrap_err();
    assert!(none.to_string().contains("vsock.sock"), "{none}");
    let listener = UnixListener::bind(paths.vsock()).unwrap();
    let serving = tokio::spawn(guest(listener, vec![Vec::new()]));
    let off = Console::open(&settings, "ns", "pod").await.unwrap_err();
    assert!(off.to_string().contains("debug.console"), "{off}");
    serving.await.unwrap();
}

/// A shim that lends `stream` to the first and has nothing for others.
async fn shim(paths: &PodPaths, stream: std::os::unix::net::UnixStream) -> UnixListener {
    let listener = UnixListener::bind(paths.monitor()).unwrap();
    tokio::spawn({
        let listener =
            UnixListener::from_std(listener.as_fd().try_clone_to_owned().unwrap().into()).unwrap();
        async move {
            let mut held = Vec::new();
            loop {
                let (mut operator, _) = listener.accept().await.unwrap();
                operator::wish(&mut operator).await.unwrap();
                match held.is_empty() {
                    true => operator::tell(&operator, Ok(Some(stream.as_fd()))).unwrap(),
                    false => operator::tell(&operator, Err(&OperatorError::Taken)).unwrap(),
                }
                held.push(operator);
            }
        }
    });
    listener
}

/// Says `stale`, then sends the mark back, and answers questions.
async fn at_the_port(stream: std::os::unix::net::UnixStream, stale: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut stream = BufReader::new(UnixStream::from_std(stream)?);
    stream.get_mut().write_all(stale).await?;
    let mut line = String::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let answer = match line.strip_prefix('=') {
            Some(token) => format!("\0={}\0", token.trim_end()),
            None => format!("+{line}\0"),
        };
        stream.get_mut().write_all(answer.as_bytes()).await?;
    }
}

#[rstest]
#[case(b"".to_vec())]
// The rest of an answer, an answer, the beginning of one.
#[case(b"st of it\n\0+two\n\0-thr".to_vec())]
// A guess.
#[case(b"\0=00000000000000000000000000000000\0".to_vec())]
#[case(vec![b'x'; 2 * ANSWER_LEN + 7])]
#[case(vec![END; 100_000])]
#[tokio::test]
async fn at_the_port_a_conversation_begins_behind_the_last_ones(#[case] stale: Vec<u8>) {
    let (_dir, settings, paths) = place();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let _shim = shim(&paths, ours).await;
    let guest = tokio::spawn(async move { at_the_port(theirs, &stale).await });
    let mut console = Console::open(&settings, "ns", "pod").await.unwrap();
    // To the line that was ended before the mark.
    for question in ["a", "b"] {
        let answer = console.ask(question).await.unwrap();
        assert_eq!(answer.text, format!("{question}\n"));
    }
    guest.abort();
}

#[tokio::test]
async fn a_guest_that_floods_the_port_is_given_up() {
    let flood = vec![b'x'; STALE_LEN + ANSWER_LEN];
    let (_dir, settings, paths) = place();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let _shim = shim(&paths, ours).await;
    let guest = tokio::spawn(async move { at_the_port(theirs, &flood).await });
    let told = Console::open(&settings, "ns", "pod").await.unwrap_err();
    assert!(told.to_string().contains("try again"), "{told}");
    guest.abort();
}

#[tokio::test]
async fn the_second_person_goes_by_vsock_and_is_told_where_that_fails() {
    let (_dir, settings, paths) = place();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let _shim = shim(&paths, ours).await;
    let port = tokio::spawn(async move { at_the_port(theirs, b"").await });
    let _first = Console::open(&settings, "ns", "pod").await.unwrap();
    let told = Console::open(&settings, "ns", "pod").await.unwrap_err();
    assert!(told.to_string().contains("somebody else"), "{told}");
    let listener = UnixListener::bind(paths.vsock()).unwrap();
    let said = vec![b"OK 1\n".to_vec(), b"+one\0".to_vec()];
    let serving = tokio::spawn(guest(listener, said));
    let mut second = Console::open(&settings, "ns", "pod").await.unwrap();
    assert_eq!(second.ask("a").await.unwrap().text, "one");
    serving.await.unwrap();
    port.abort();
}

#[tokio::test]
async fn a_pod_that_was_started_without_it_says_what_to_set() {
    let (_dir, settings, paths) = place();
    let listener = UnixListener::bind(paths.monitor()).unwrap();
    let serving = tokio::spawn(async move {
        let (mut operator, _) = listener.accept().await.unwrap();
        operator::wish(&mut operator).await.unwrap();
        operator::tell(&operator, Err(&OperatorError::Off)).unwrap();
    });
    let told = Console::open(&settings, "ns", "pod").await.unwrap_err();
    assert!(told.to_string().contains("debug.console"), "{told}");
    serving.await.unwrap();
}
