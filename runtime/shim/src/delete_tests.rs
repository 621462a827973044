use std::{
    os::unix::net::UnixListener,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{StateResponse, WaitResponse},
    protobuf::well_known_types::empty::Empty,
    shim_async::{Task, create_task},
    ttrpc::asynchronous::{Server as TtrpcServer, TtrpcContext},
};

use super::*;

/// A server with one container, `c`.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
}

impl Fake {
    fn note(&self, call: &str, id: &str) -> ttrpc::Result<()> {
        if id != "c" {
            return Err(convert::status_error(Code::NOT_FOUND, "no"));
        }
        self.calls.lock().expect("unpoisoned").push(call.to_owned());
        Ok(())
    }
}

#[async_trait]
impl Task for Fake {
    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> ttrpc::Result<StateResponse> {
        self.note("state", &r.id).map(|()| StateResponse::default())
    }
    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> ttrpc::Result<Empty> {
        assert!(r.all && r.signal == SIGKILL);
        self.note("kill", &r.id).map(|()| Empty::default())
    }
    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> ttrpc::Result<WaitResponse> {
        self.note("wait", &r.id).map(|()| WaitResponse::default())
    }
    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        self.note("delete", &r.id)?;
        Ok(DeleteResponse {
            pid: 7,
            exit_status: 3,
            ..DeleteResponse::default()
        })
    }
    async fn shutdown(&self, _: &TtrpcContext, r: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.note("shutdown", &r.id).map(|()| Empty::default())
    }
}

fn bundle_with_address() -> tempfile::TempDir {
    let bundle = tempfile::tempdir().expect("a directory");
    let address = format!("unix://{}", bundle.path().join("s").display());
    bundle::write_address(bundle.path(), &address).expect("written");
    bundle
}

async fn serve(bundle: &Path, fake: &Arc<Fake>) -> TtrpcServer {
    let mut server = TtrpcServer::new()
        .bind(&format!("unix://{}", bundle.join("s").display()))
        .expect("binds")
        .register_service(create_task(fake.clone()));
    server.start().await.expect("starts");
    server
}

#[tokio::test]
async fn a_server_that_has_forgotten_the_container_is_left_alone() {
    let bundle = bundle_with_address();
    let fake = Arc::new(Fake::default());
    let _server = serve(bundle.path(), &fake).await;
    let answer = ask_server(bundle.path(), "other").await;
    assert!(matches!(answer, Server::Elsewhere), "{answer:?}");
    assert!(fake.calls.lock().expect("unpoisoned").is_empty());
}

#[tokio::test]
async fn a_server_that_has_the_container_deletes_it() {
    let bundle = bundle_with_address();
    let fake = Arc::new(Fake::default());
    let _server = serve(bundle.path(), &fake).await;
    let Server::Deleted(response) = ask_server(bundle.path(), "c").await else {
        panic!("deleted");
    };
    assert_eq!((response.pid, response.exit_status), (7, 3));
    let calls = fake.calls.lock().expect("unpoisoned").clone();
    assert_eq!(calls, ["state", "kill", "wait", "delete", "shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn dead_and_mute_servers_are_told_apart() {
    let bundle = tempfile::tempdir().expect("a directory");
    let answer = ask_server(bundle.path(), "c").await;
    assert!(matches!(answer, Server::Gone), "{answer:?}");
    let bundle = bundle_with_address();
    // It accepts and never answers.
    let listener = UnixListener::bind(bundle.path().join("s")).expect("binds");
    let answer = ask_server(bundle.path(), "c").await;
    assert!(matches!(answer, Server::Mute(_)), "{answer:?}");
    drop(listener);
    let answer = ask_server(bundle.path(), "c").await;
    assert!(matches!(answer, Server::Gone), "{answer:?}");
}

#[test]
fn only_a_stale_socket_is_removed() {
    let bundle = bundle_with_address();
    let socket = bundle.path().join("s");
    let listener = UnixListener::bind(&socket).expect("binds");
    remove_stale_socket(bundle.path());
    assert!(socket.exists());
    drop(listener);
    remove_stale_socket(bundle.path());
    assert!(!socket.exists());
}

#[test]
fn a_living_server_is_ended_and_a_stranger_is_not() {
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .expect("sleep runs");
    let record = ServerRecord::of(child.id()).expect("it lives");
    end(&ServerRecord {
        start_time: record.start_time.wrapping_add(1),
        ..record.clone()
    });
    assert!(record.lives());
    end(&record);
    assert!(!record.lives());
    child.wait().expect("reaped");
}
