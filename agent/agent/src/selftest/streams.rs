//! Devices that bytes come from or go to: entropy, the console's port, sockets.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

use super::{SelfTestError, expect, pattern, system};

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

/// Terminals that the kernel's driver can have (drivers/tty/hvc/hvc_console.c, HVC_ALLOC_TTY_ADAPTERS).
const TERMINALS: usize = 8;

/// Until the driver and the device have agreed that a port is a console (virtio 1.2, 5.3.6.2).
const AGREE: Duration = Duration::from_secs(60);

/// The console: what is written is taken, if somebody is there to take it.
pub(super) fn console(scale: usize) -> Result<String, SelfTestError> {
    let since = Instant::now();
    loop {
        if let Some((file, path)) = terminal()? {
            return lines(file, &path, 16 * scale);
        }
        expect(since.elapsed() < AGREE, || "it has no terminal".to_owned())?;
        thread::sleep(Duration::from_millis(100));
    }
}

/// The one that works: after a reset it has the next number.
fn terminal() -> Result<Option<(File, PathBuf)>, SelfTestError> {
    for number in 0..TERMINALS {
        let path = PathBuf::from(format!("/dev/hvc{number}"));
        let opened = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&path);
        match opened {
            Ok(file) => return Ok(Some((file, path))),
            // One that is gone, or not there yet.
            Err(error)
                if [Some(libc::ENODEV), Some(libc::ENOENT)].contains(&error.raw_os_error()) => {}
            Err(error) => return Err(system("open", path)(error)),
        }
    }
    Ok(None)
}

fn lines(mut file: File, path: &Path, count: usize) -> Result<String, SelfTestError> {
    for n in 0..count {
        match writeln!(file, "selftest line {n}") {
            // Nobody takes them.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            other => other.map_err(system("write", path))?,
        }
    }
    Ok(format!("{count} lines"))
}

/// A port of the host at which nobody listens.
const NOBODY: u32 = 1;
/// One at which everything is sent back, if the host has made it.
const ECHO: u32 = 1000;
/// Bytes there and back in one turn: less than either side holds.
const TURN: usize = 32 << 10;

/// Sockets: bytes there and back, and connections that the host refuses, one after the other.
pub(super) fn vsock(scale: usize) -> Result<String, SelfTestError> {
    let echoed = match connected(ECHO)? {
        None => "nobody echoes".to_owned(),
        Some(mut stream) => {
            let (mut out, mut back) = (vec![0; TURN], vec![0; TURN]);
            for n in 0..4 * scale {
                pattern(n, &mut out);
                stream.write_all(&out).map_err(system("write", "vsock"))?;
                stream
                    .read_exact(&mut back)
                    .map_err(system("read", "vsock"))?;
                expect(out == back, || format!("turn {n} came back another"))?;
            }
            format!("{} KiB echoed", (4 * scale * TURN) >> 10)
        }
    };
    for _ in 0..16 * scale {
        if connected(NOBODY)?.is_some() {
            return Err(SelfTestError::Wrong("nobody answered".to_owned()));
        }
    }
    Ok(format!("{echoed}, {} connections refused", 16 * scale))
}

/// A connection to a port of the host; `None`: it was refused.
fn connected(port: u32) -> Result<Option<File>, SelfTestError> {
    let failed = |act| move |error: nix::Error| system(act, "vsock")(error.into());
    let socket = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed("make"))?;
    match connect(
        socket.as_raw_fd(),
        &VsockAddr::new(libc::VMADDR_CID_HOST, port),
    ) {
        Ok(()) => Ok(Some(File::from(socket))),
        Err(nix::Error::ECONNRESET) => Ok(None),
        Err(error) => Err(failed("connect")(error)),
    }
}
