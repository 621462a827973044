//! Devices that bytes come from or go to: entropy, the console's port, sockets.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

use super::{SelfTestError, expect, system};

/// Entropy: never twice the same, and as much as is asked for.
pub(super) fn entropy(scale: usize) -> Result<String, SelfTestError> {
    let path = Path::new("/dev/hwrng");
    let mut file = File::open(path).map_err(system("open", path))?;
    let mut last = vec![0; 64];
    let count = 64 * scale;
    for _ in 0..count {
        let mut bytes = vec![0; 64];
        file.read_exact(&mut bytes).map_err(system("read", path))?;
        expect(bytes != last, || "the same bytes twice".to_owned())?;
        last = bytes;
    }
    Ok(format!("{count} reads"))
}

/// The interactive port: what is written is taken, if somebody is there to take it.
pub(super) fn console(scale: usize) -> Result<String, SelfTestError> {
    let path = Path::new("/dev/hvc0");
    let mut file = match File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
    {
        // A port of another kind than a terminal.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok("no terminal".into()),
        other => other.map_err(system("open", path))?,
    };
    for n in 0..16 * scale {
        match writeln!(file, "selftest line {n}") {
            // Nobody takes them.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            other => other.map_err(system("write", path))?,
        }
    }
    Ok(format!("{} lines", 16 * scale))
}

/// A port of the host at which nobody listens.
const NOBODY: u32 = 1;

/// Sockets: connections that the host refuses, one after the other.
pub(super) fn vsock(scale: usize) -> Result<String, SelfTestError> {
    let failed = |act| move |error: nix::Error| system(act, "vsock")(error.into());
    for _ in 0..16 * scale {
        let socket = socket(
            AddressFamily::Vsock,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(failed("make"))?;
        let host = VsockAddr::new(libc::VMADDR_CID_HOST, NOBODY);
        match connect(socket.as_raw_fd(), &host) {
            Err(nix::Error::ECONNRESET) => {}
            other => return Err(SelfTestError::Wrong(format!("a connection: {other:?}"))),
        }
    }
    Ok(format!("{} connections refused", 16 * scale))
}
