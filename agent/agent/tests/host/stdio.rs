//! Streams and terminals.

use isopod_protocol::agent::{ResizeRequest, Stdio};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use ttrpc::context::with_timeout;

use crate::guest::Guest;

const CALL: i64 = 300_000_000_000;

#[tokio::test]
async fn much_data_both_ways_in_order() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let (in_id, stdin) = guest.stream().await;
    let (out_id, mut stdout) = guest.stream().await;
    let mut stdio = Stdio::new();
    (stdio.stdin, stdio.stdout) = (in_id, out_id);
    let spec = guest.spec(&["cat"], json!({}));
    guest.create("a", &spec, stdio).await.expect("create");
    guest.start_process("a", "").await.expect("start");
    let data: Vec<u8> = (0..16 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let sent = data.clone();
    let writer = tokio::spawn(async move {
        let mut stdin = stdin;
        stdin.write_all(&sent).await.expect("write");
        stdin.shutdown().await.expect("half close");
        // Kept open: only the half close may end the input.
        stdin
    });
    let mut received = Vec::with_capacity(data.len());
    stdout.read_to_end(&mut received).await.expect("read");
    drop(writer.await.expect("no panic"));
    assert!(
        received == data,
        "{} of {} bytes",
        received.len(),
        data.len()
    );
    assert_eq!(guest.exit_of("a", "").await, 0);
}

#[tokio::test]
async fn stdin_ends_by_the_call_too() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let (in_id, mut stdin) = guest.stream().await;
    let (out_id, mut stdout) = guest.stream().await;
    let mut stdio = Stdio::new();
    (stdio.stdin, stdio.stdout) = (in_id, out_id);
    let spec = guest.spec(&["cat"], json!({}));
    guest.create("a", &spec, stdio).await.expect("create");
    guest.start_process("a", "").await.expect("start");
    stdin.write_all(b"last words").await.expect("write");
    guest
        .client
        .close_stdin(with_timeout(CALL), &Guest::process("a", ""))
        .await
        .expect("close");
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.expect("read");
    assert_eq!(text, "last words");
}

#[tokio::test]
async fn a_reader_that_goes_away_does_not_hurt_the_process() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let (out_id, stdout) = guest.stream().await;
    let mut stdio = Stdio::new();
    stdio.stdout = out_id;
    let spec = guest.spec(
        &["sh", "-c", "head -c 1000000 /dev/zero && exit 7"],
        json!({}),
    );
    guest.create("a", &spec, stdio).await.expect("create");
    drop(stdout);
    guest.start_process("a", "").await.expect("start");
    assert_eq!(guest.exit_of("a", "").await, 7);
}

#[tokio::test]
async fn a_terminal_controls_resizes_and_ends() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let (in_id, mut stdin) = guest.stream().await;
    let (out_id, mut stdout) = guest.stream().await;
    let mut stdio = Stdio::new();
    (stdio.terminal, stdio.stdin, stdio.stdout) = (true, in_id, out_id);
    let script = "tty; stty size; stty -echo; ls -l /dev/console >/dev/null && echo console; read line; echo got $line; stty size; exit 6";
    let spec = guest.spec(
        &["sh", "-c", script],
        json!({"process": {"terminal": true, "consoleSize": {"height": 24, "width": 80}}}),
    );
    guest.create("a", &spec, stdio).await.expect("create");
    guest.start_process("a", "").await.expect("start");
    let mut text = String::new();
    while !text.contains("console") {
        let mut bytes = [0; 256];
        let length = stdout.read(&mut bytes).await.expect("read");
        assert_ne!(length, 0, "{text}");
        text.push_str(std::str::from_utf8(&bytes[..length]).expect("text"));
    }
    let mut resize = ResizeRequest::new();
    resize.container_id = "a".into();
    (resize.width, resize.height) = (132, 50);
    guest
        .client
        .resize(with_timeout(CALL), &resize)
        .await
        .expect("resize");
    stdin.write_all(b"this\n").await.expect("write");
    stdout.read_to_string(&mut text).await.expect("read");
    assert_eq!(
        text,
        "/dev/pts/0\r\n24 80\r\nconsole\r\ngot this\r\n50 132\r\n"
    );
    assert_eq!(guest.exit_of("a", "").await, 6);

    // An exec with a terminal of its own, in the container's devpts.
    guest.sleeper("b", json!({})).await;
    let (out_id, mut stdout) = guest.stream().await;
    let mut stdio = Stdio::new();
    (stdio.terminal, stdio.stdout) = (true, out_id);
    let mut process = guest.spec(&["sh", "-c", "tty; exit 3"], json!({}))["process"].clone();
    process["terminal"] = json!(true);
    guest.exec("b", "e", &process, stdio).await.expect("exec");
    guest.start_process("b", "e").await.expect("start");
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.expect("read");
    assert_eq!(text, "/dev/pts/0\r\n");
    assert_eq!(guest.exit_of("b", "e").await, 3);
}

#[tokio::test]
async fn the_terminals_hangup_reaches_the_process() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let (in_id, mut stdin) = guest.stream().await;
    let (out_id, mut stdout) = guest.stream().await;
    let mut stdio = Stdio::new();
    (stdio.terminal, stdio.stdin, stdio.stdout) = (true, in_id, out_id);
    // ^C is a signal of the terminal: it must be the controlling one. Init of a pid namespace handles it.
    let spec = guest.spec(
        &[
            "sh",
            "-c",
            "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done",
        ],
        json!({"process": {"terminal": true}}),
    );
    guest.create("a", &spec, stdio).await.expect("create");
    guest.start_process("a", "").await.expect("start");
    let mut bytes = [0; 5];
    stdout.read_exact(&mut bytes).await.expect("ready");
    stdin.write_all(b"\x03").await.expect("write");
    let mut text = String::new();
    stdout.read_to_string(&mut text).await.expect("read");
    assert!(text.contains("interrupted"), "{text}");
    assert_eq!(guest.exit_of("a", "").await, 9);
}
