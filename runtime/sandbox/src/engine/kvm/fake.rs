//! A monitor that a test makes up, at the other end of a real connection.

use std::{io, sync::Arc};

use isopod_control::monitor_ttrpc::{Monitor, MonitorClient, create_monitor};
use tokio::net::UnixStream;
use ttrpc::asynchronous::{
    Client, Server,
    transport::{Listener, Socket},
};

/// Serves it as long as the test runs.
pub(super) async fn serve(monitor: Arc<impl Monitor + Send + 'static>) -> MonitorClient {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let incoming = futures::stream::iter([Ok::<_, io::Error>(theirs)]);
    let mut server = Server::new()
        .add_listener(Listener::new(incoming))
        .register_service(create_monitor(monitor));
    server.start().await.unwrap();
    std::mem::forget(server);
    MonitorClient::new(Client::new(Socket::new(ours)))
}
