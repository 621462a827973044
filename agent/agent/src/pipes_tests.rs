use super::*;
use std::{fs::File, io::Write as _};
use tokio::io::duplex;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[tokio::test]
async fn output_arrives_whole_in_order_and_ends() {
    let (theirs, ours) = output_pipe().expect("pipe");
    let (host, guest) = duplex(1000);
    let data = pattern(1 << 20);
    let expected = data.clone();
    let writer = std::thread::spawn(move || File::from(theirs).write_all(&data));
    tokio::spawn(copy_out(Arc::new(ours), Box::new(guest)));
    let mut host = host;
    let mut received = Vec::new();
    host.read_to_end(&mut received).await.expect("read");
    writer.join().expect("no panic").expect("written");
    assert!(received == expected);
}

#[tokio::test]
async fn output_that_nobody_takes_does_not_stop_the_process() {
    let (theirs, ours) = output_pipe().expect("pipe");
    let (host, guest) = duplex(1000);
    drop(host);
    let copying = tokio::spawn(copy_out(Arc::new(ours), Box::new(guest)));
    let writer = std::thread::spawn(move || File::from(theirs).write_all(&pattern(1 << 20)));
    copying.await.expect("no panic");
    writer.join().expect("no panic").expect("never EPIPE");
}

#[tokio::test]
async fn input_arrives_whole_and_ends_with_the_stream() {
    let (theirs, ours) = input_pipe().expect("pipe");
    let (mut host, guest) = duplex(1000);
    let (_keep, closed) = watch::channel(false);
    tokio::spawn(copy_in(Box::new(guest), Arc::new(ours), closed));
    let reader = tokio::task::spawn_blocking(move || {
        let mut received = Vec::new();
        io::Read::read_to_end(&mut File::from(theirs), &mut received).map(|_| received)
    });
    let data = pattern(1 << 20);
    host.write_all(&data).await.expect("write");
    drop(host);
    assert!(reader.await.expect("no panic").expect("read") == data);
}

#[tokio::test]
async fn closing_takes_what_was_sent_before() {
    let (theirs, ours) = input_pipe().expect("pipe");
    let (mut host, guest) = duplex(1000);
    let (close, closed) = watch::channel(false);
    let copying = tokio::spawn(copy_in(Box::new(guest), Arc::new(ours), closed));
    host.write_all(b"last words").await.expect("write");
    close.send(true).expect("listening");
    copying.await.expect("no panic");
    let mut received = String::new();
    io::Read::read_to_string(&mut File::from(theirs), &mut received).expect("read");
    assert_eq!(received, "last words");
}

#[tokio::test]
async fn a_process_that_closes_its_input_ends_the_copy() {
    let (theirs, ours) = input_pipe().expect("pipe");
    let (mut host, guest) = duplex(1000);
    let (_keep, closed) = watch::channel(false);
    let copying = tokio::spawn(copy_in(Box::new(guest), Arc::new(ours), closed));
    drop(theirs);
    // The copy ends and with it the stream: the host's write fails instead of blocking for ever.
    let mut failed = false;
    for _ in 0..100 {
        failed |= host.write_all(&[0; 4096]).await.is_err();
    }
    assert!(failed);
    copying.await.expect("no panic");
}
