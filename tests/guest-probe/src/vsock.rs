//! The guest's end of the vsock measurements.
//!
//! The first byte of a connection says what follows: `e` every byte comes back at once; `r` eight bytes
//! (little endian) of length, then that many bytes are read and one is written; `w` eight bytes of length,
//! then that many are written.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Serves one connection after another.
pub fn serve(port: u32) -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port).context("listen")?;
    println!("listening");
    for connection in listener.incoming() {
        // A client that goes away ends its connection, not the server.
        if let Err(error) = answer(connection?) {
            eprintln!("connection: {error:#}");
        }
    }
    Ok(())
}

fn answer(mut stream: VsockStream) -> Result<()> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    let mut block = vec![0; 256 * 1024];
    if kind == *b"e" {
        let byte = &mut [0];
        while stream.read(byte)? > 0 {
            stream.write_all(byte)?;
        }
        return Ok(());
    }
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let mut left = u64::from_le_bytes(length);
    while left > 0 {
        let size = usize::try_from(left)
            .unwrap_or(block.len())
            .min(block.len());
        let part = block.get_mut(..size).unwrap_or_default();
        if kind == *b"r" {
            let count = stream.read(part)?;
            anyhow::ensure!(count > 0, "{left} bytes are missing");
            left -= count as u64;
        } else {
            stream.write_all(part)?;
            left -= size as u64;
        }
    }
    if kind == *b"r" {
        stream.write_all(b".")?;
    }
    Ok(())
}
