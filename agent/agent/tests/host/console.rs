//! The debug console: off until the host says so, then answers about what is there.

use std::time::Duration;

use isopod_protocol::{PROTOCOL_VERSION, agent::HelloRequest, debug::END};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};
use ttrpc::context::with_timeout;

use crate::guest::Guest;

const CALL: i64 = 300_000_000_000;

async fn greet(guest: &Guest, debug_console: bool) {
    let mut request = HelloRequest::new();
    request.protocol_version = PROTOCOL_VERSION;
    request.debug_console = debug_console;
    let greeted = guest.client.hello(with_timeout(CALL), &request).await;
    greeted.expect("hello");
}

async fn console(guest: &Guest) -> BufReader<UnixStream> {
    let socket = guest.tmp().join("debug.sock");
    BufReader::new(UnixStream::connect(socket).await.expect("it listens"))
}

async fn ask(console: &mut BufReader<UnixStream>, line: &str) -> String {
    let line = format!("{line}\n");
    let asked = console.get_mut().write_all(line.as_bytes()).await;
    asked.expect("asked");
    let mut answer = Vec::new();
    console.read_until(END, &mut answer).await.expect("answer");
    assert_eq!(answer.pop(), Some(END), "{answer:?}");
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn a_console_tells_of_containers() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    greet(&guest, false).await;
    assert!(!guest.tmp().join("debug.sock").exists(), "off");
    // Every connection of the host is greeted, also the second.
    greet(&guest, true).await;
    greet(&guest, true).await;

    guest.sleeper("web", json!({})).await;
    let mut console = console(&guest).await;
    let containers = ask(&mut console, "containers").await;
    assert!(containers.starts_with('+'), "{containers}");
    let line = containers.lines().find(|line| line.ends_with("  web"));
    let line = line.unwrap_or_else(|| panic!("{containers}"));
    assert!(line.starts_with("running"), "{line}");
    let pid = line.split_whitespace().nth(1).expect("a pid");

    let processes = ask(&mut console, "processes").await;
    let found = processes
        .lines()
        .find(|line| line.trim_start().starts_with(&format!("{pid} ")));
    let found = found.unwrap_or_else(|| panic!("{processes}"));
    assert!(
        found.contains(" web ") && found.ends_with("sleep 1000"),
        "{found}"
    );

    let mounts = ask(&mut console, &format!("mounts {pid}")).await;
    assert!(mounts.contains(" /dev/shm tmpfs "), "{mounts}");
    let cgroup = ask(&mut console, "cgroup web").await;
    assert!(
        cgroup.contains(&format!("cgroup.procs {pid}\n")),
        "{cgroup}"
    );
    assert!(ask(&mut console, "memory").await.contains("MemTotal"));
    assert!(ask(&mut console, "help").await.contains("containers"));

    for (line, words) in [
        ("reboot", "help"),
        ("cgroup nobody", "no container nobody"),
        ("read /etc/passwd", "only files"),
        ("mounts 4000000", "No such file"),
    ] {
        let told = ask(&mut console, line).await;
        assert!(
            told.starts_with('-') && told.contains(words),
            "{line}: {told}"
        );
    }
    guest.kill("web", "", 9, false).await.expect("kill");
    guest.exit_of("web", "").await;
    guest.delete("web", "").await.expect("delete");
    assert!(!ask(&mut console, "containers").await.contains("web"));
}

#[tokio::test]
async fn consoles_are_bounded_and_rubbish_ends_one() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    greet(&guest, true).await;
    let mut four = Vec::new();
    for _ in 0..4 {
        let mut one = console(&guest).await;
        ask(&mut one, "help").await;
        four.push(one);
    }
    let mut fifth = console(&guest).await;
    let mut told = Vec::new();
    let _ = fifth.get_mut().write_all(b"help\n").await;
    // It ends, by a reset if the question was not read.
    let _ = fifth.read_to_end(&mut told).await;
    assert!(told.is_empty(), "{told:?}");

    // A line without an end: the console is closed, and its place is free again.
    let mut rude = four.pop().expect("one");
    let _ = rude.get_mut().write_all(&[b'x'; 10_000]).await;
    let _ = rude.read_to_end(&mut Vec::new()).await;
    let served = async {
        loop {
            let mut next = console(&guest).await;
            let _ = next.get_mut().write_all(b"help\n").await;
            let mut answer = Vec::new();
            let _ = next.read_until(END, &mut answer).await;
            if answer.last() == Some(&END) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), served)
        .await
        .expect("a place");
}
