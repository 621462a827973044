//! The agent's sockets. Only the host is let in: a container shares the guest's vsock address, and with a
//! loopback transport it could reach these ports.

use std::io;

use futures::stream::unfold;
use isopod_protocol::ports;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::UnixListener,
};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::{Place, log};

/// A connection of the host.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// Connections on one port.
pub(crate) enum Listener {
    Vsock(VsockListener),
    Unix(UnixListener),
}

/// Connections that wait to be accepted; one more is refused. A hundred execs at once, with three streams
/// each, come faster than one virtual CPU accepts them. The kernel's default limit for all sockets.
const BACKLOG: i32 = 4096;

fn bind(place: &Place, port: u32, name: &str) -> io::Result<Listener> {
    match &place.sockets {
        Some(directory) => UnixListener::bind(directory.join(name)).map(Listener::Unix),
        None => {
            let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
            // Once more: the library listens with a short queue.
            rustix::net::listen(&listener, BACKLOG)?;
            Ok(Listener::Vsock(listener))
        }
    }
}

impl Listener {
    /// The next connection of the host. Others are closed.
    pub(crate) async fn accept(&self) -> Box<dyn Stream> {
        loop {
            let result: io::Result<Box<dyn Stream>> = match self {
                Self::Unix(listener) => match listener.accept().await {
                    Ok((stream, _)) => Ok(Box::new(stream)),
                    Err(e) => Err(e),
                },
                Self::Vsock(listener) => match listener.accept().await {
                    Ok((_, peer)) if peer.cid() != ports::HOST_CID => continue,
                    Ok((stream, _)) => Ok(Box::new(stream)),
                    Err(e) => Err(e),
                },
            };
            match result {
                Ok(stream) => return stream,
                Err(e) => {
                    // Descriptors or memory ran out: wait for some to be given back.
                    log::warning(&format!("accept a connection: {e}"));
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// For ttrpc.
pub(crate) fn calls(place: &Place) -> io::Result<ttrpc::r#async::transport::Listener> {
    let listener = bind(place, ports::AGENT, "agent.sock")?;
    let connections = unfold(listener, async |listener| {
        let stream = listener.accept().await;
        Some((Ok(stream), listener))
    });
    Ok(ttrpc::r#async::transport::Listener::new(connections))
}

/// For standard streams.
pub(crate) fn stdio(place: &Place) -> io::Result<Listener> {
    bind(place, ports::STDIO, "stdio.sock")
}

/// For the debug console.
pub(crate) fn debug(place: &Place) -> io::Result<Listener> {
    bind(place, ports::DEBUG, "debug.sock")
}

/// Tells the host that calls are served. A test looks for the socket instead.
pub(crate) async fn tell_ready(place: &Place) -> io::Result<()> {
    if place.sockets.is_some() {
        return Ok(());
    }
    let host = VsockAddr::new(ports::HOST_CID, ports::READY);
    let tell = async || {
        let mut stream = VsockStream::connect(host).await?;
        stream.write_all(&[ports::READY_BYTE]).await
    };
    // The kernel gives up a connection after two seconds (VSOCK_DEFAULT_CONNECT_TIMEOUT), which a busy
    // host's file server may take to answer, and the host may have given one up by the time that the
    // guest runs again. How long a boot may take is for the host to say.
    loop {
        match tell().await {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            outcome => return outcome,
        }
    }
}
