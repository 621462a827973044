//! vsock, from a program on the host to a program in a container.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use isopod_tests::{Background, Bed, probe::PATH};

use crate::{start::median, table::Row};

const PORT: u32 = 5000;
const BYTES: u64 = 256 << 20;

pub fn measure(bed: &Bed) -> Result<Vec<Row>> {
    let container = bed.container().sleeping()?;
    let mut command = container.exec_command(&[], [PATH, "vsock", &PORT.to_string()]);
    let mut server = Background::start(&mut command)?;
    server.line(Duration::from_secs(60), |line| line == "listening")?;
    let socket = socket()?;
    let trips = round_trips(&socket)?;
    let upload = rate(&socket, b'r')?;
    let download = rate(&socket, b'w')?;
    container.end()?;
    Ok(vec![
        Row::new("round trip of one byte", "us", median(trips)),
        Row::new("host to guest", "MiB/s", upload),
        Row::new("guest to host", "MiB/s", download),
    ])
}

/// The one pod's socket.
fn socket() -> Result<PathBuf> {
    let mut pods = fs::read_dir("/run/isopod")?;
    Ok(pods.next().context("a pod")??.path().join("vsock.sock"))
}

fn connect(socket: &PathBuf, kind: u8) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).context("connect to the vsock device")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream
            .read_exact(&mut byte)
            .context("the device's answer")?;
        answer.extend(byte);
    }
    ensure!(
        answer.starts_with(b"OK "),
        "answered {:?}",
        String::from_utf8_lossy(&answer)
    );
    stream.write_all(&[kind])?;
    Ok(stream)
}

/// Microseconds.
fn round_trips(socket: &PathBuf) -> Result<Vec<f64>> {
    let mut stream = connect(socket, b'e')?;
    let mut trips = Vec::new();
    for _ in 0..1000 {
        let began = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        trips.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(trips)
}

/// MiB/s; `r`: the guest reads, `w`: it writes.
fn rate(socket: &PathBuf, kind: u8) -> Result<f64> {
    let mut stream = connect(socket, kind)?;
    let mut block = vec![0; 256 << 10];
    let began = Instant::now();
    stream.write_all(&BYTES.to_le_bytes())?;
    let mut left = BYTES;
    while left > 0 {
        if kind == b'r' {
            stream.write_all(&block)?;
            left -= block.len() as u64;
        } else {
            let count = stream.read(&mut block)?;
            ensure!(count > 0, "{left} bytes are missing");
            left -= count as u64;
        }
    }
    if kind == b'r' {
        stream.read_exact(&mut [0])?;
    }
    Ok(BYTES as f64 / 1_048_576.0 / began.elapsed().as_secs_f64())
}
