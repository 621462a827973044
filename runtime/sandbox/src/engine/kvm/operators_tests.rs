//! Operators come and go at a monitor that is made up.

use std::sync::Mutex;

use async_trait::async_trait;
use isopod_control::{
    monitor::{Counter, Device, Empty, MetricsResponse, Queue},
    monitor_ttrpc::Monitor,
    parcel::Parcels,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::AsyncWriteExt as _;
use ttrpc::{Code, asynchronous::TtrpcContext, error::get_rpc_status};

use super::*;
use crate::{engine::kvm::fake, operator::ask};

/// Has a console with one place.
struct Fake {
    parcels: Mutex<Parcels>,
    attached: Mutex<Option<OwnedFd>>,
    /// Every attach is refused with this.
    refusal: Mutex<Option<&'static str>>,
}

#[async_trait]
impl Monitor for Fake {
    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> ttrpc::Result<Empty> {
        assert_eq!(
            (request.slot.as_str(), request.kind),
            ("console", BackEnd::STREAM.into())
        );
        let taken = self.parcels.lock().unwrap().take(request.parcel);
        let descriptor = taken.expect("a parcel").pop().expect("a descriptor");
        if let Some(why) = *self.refusal.lock().unwrap() {
            return Err(get_rpc_status(Code::INTERNAL, why));
        }
        let mut attached = self.attached.lock().unwrap();
        if attached.is_some() {
            return Err(get_rpc_status(
                Code::ALREADY_EXISTS,
                "slot console is in use",
            ));
        }
        *attached = Some(descriptor);
        Ok(Empty::new())
    }

    async fn metrics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<MetricsResponse> {
        let mut counter = Counter::new();
        counter.name = "log_bytes".to_owned();
        counter.value = 7;
        let mut device = Device::new();
        device.name = SLOT.to_owned();
        device.queues = vec![Queue::new(); 300];
        device.counters.push(counter);
        let mut response = MetricsResponse::new();
        response.devices = vec![device; 30];
        Ok(response)
    }

    async fn detach(&self, _: &TtrpcContext, request: DetachRequest) -> ttrpc::Result<Empty> {
        assert_eq!(request.slot, "console");
        match self.attached.lock().unwrap().take() {
            Some(_) => Ok(Empty::new()),
            None => Err(get_rpc_status(Code::FAILED_PRECONDITION, "it is empty")),
        }
    }
}

impl Fake {
    fn at_the_port(&self) -> bool {
        self.attached.lock().unwrap().is_some()
    }
}

struct Rig {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    operators: Operators,
}

async fn rig(console: bool) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("monitor.sock")).unwrap();
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let (parcels, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    let fake = Arc::new(Fake {
        parcels: Mutex::new(Parcels::new(theirs)),
        attached: Mutex::default(),
        refusal: Mutex::default(),
    });
    let control = fake::serve(fake.clone()).await;
    let desk = Desk::new(control, console.then_some(parcels));
    Rig {
        dir,
        fake,
        operators: Operators::start(listener, desk),
    }
}

impl Rig {
    async fn ask(&self) -> Result<(UnixStream, Option<OwnedFd>), OperatorError> {
        ask(&self.dir.path().join("monitor.sock"), Wish::Debug).await
    }

    /// He has closed his connection: waits until he was taken out.
    async fn is_free(&self) {
        let limit = tokio::time::Instant::now() + Duration::from_secs(30);
        while self.fake.at_the_port() {
            assert!(tokio::time::Instant::now() < limit);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What the monitor has, and what the operator has.
async fn say(from: OwnedFd, to: &OwnedFd, word: &[u8]) {
    let mut from = UnixStream::from_std(nonblocking(from)).unwrap();
    let mut to = UnixStream::from_std(nonblocking(to.try_clone().unwrap())).unwrap();
    from.write_all(word).await.unwrap();
    let mut heard = vec![0; word.len()];
    to.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, word);
}

fn nonblocking(fd: OwnedFd) -> Pair {
    let pair = Pair::from(fd);
    pair.set_nonblocking(true).unwrap();
    pair
}

#[tokio::test]
async fn one_has_the_port_until_he_leaves() {
    let rig = rig(true).await;
    for _ in 0..3 {
        let (held, stream) = rig.ask().await.unwrap();
        let stream = stream.unwrap();
        let attached = rig
            .fake
            .attached
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .try_clone();
        say(attached.unwrap(), &stream, b"from the guest").await;
        for _ in 0..3 {
            let told = rig.ask().await.unwrap_err();
            assert!(matches!(told, OperatorError::Taken), "{told}");
        }
        // The stream is not what he holds it by.
        drop(stream);
        let told = rig.ask().await.unwrap_err();
        assert!(matches!(told, OperatorError::Taken), "{told}");
        drop(held);
        rig.is_free().await;
        // Its place is given back a moment later.
        while matches!(rig.ask().await, Err(OperatorError::Taken)) {
            tokio::task::yield_now().await;
        }
        rig.is_free().await;
    }
}

#[tokio::test]
async fn what_the_monitor_refuses_is_told_and_not_lent() {
    let rig = rig(true).await;
    *rig.fake.refusal.lock().unwrap() = Some("the thread is gone");
    for _ in 0..3 {
        let told = rig.ask().await.unwrap_err();
        assert!(told.to_string().contains("the thread is gone"), "{told}");
    }
    *rig.fake.refusal.lock().unwrap() = None;
    rig.ask().await.unwrap();
}

#[tokio::test]
async fn one_who_was_left_at_the_port_is_taken_out() {
    let rig = rig(true).await;
    let (forgotten, _) = Pair::pair().unwrap();
    *rig.fake.attached.lock().unwrap() = Some(forgotten.into());
    rig.ask().await.unwrap();
}

#[tokio::test]
async fn metrics_are_told_while_somebody_has_the_port() {
    let rig = rig(true).await;
    let _held = rig.ask().await.unwrap();
    // More than a socket holds at once.
    let path = rig.dir.path().join("monitor.sock");
    let (mut stream, given) = ask(&path, Wish::Metrics).await.unwrap();
    assert!(given.is_none());
    let mut json = Vec::new();
    stream.read_to_end(&mut json).await.unwrap();
    let metrics: Metrics = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        (metrics.devices.len(), metrics.devices[29].queues.len()),
        (30, 300)
    );
    assert_eq!(metrics.devices[29].counters["log_bytes"], 7);
}

#[tokio::test]
async fn a_machine_without_a_console_says_so() {
    let rig = rig(false).await;
    let told = rig.ask().await.unwrap_err();
    assert!(matches!(told, OperatorError::Off), "{told}");
}

#[tokio::test]
async fn strangers_neither_get_anything_nor_hold_anybody_up() {
    let rig = rig(true).await;
    let path = rig.dir.path().join("monitor.sock");
    // Silent, gone, and talking nonsense.
    let _silent = UnixStream::connect(&path).await.unwrap();
    drop(UnixStream::connect(&path).await.unwrap());
    let mut stranger = UnixStream::connect(&path).await.unwrap();
    stranger.write_all(b"sh\n").await.unwrap();
    let mut told = String::new();
    stranger.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("FAILED "), "{told}");
    rig.ask().await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_machine_is_the_end_of_them_all() {
    let rig = rig(true).await;
    let (mut held, _stream) = rig.ask().await.unwrap();
    drop(rig.operators);
    assert_eq!(held.read(&mut [0]).await.unwrap(), 0);
    let path = rig.dir.path().join("monitor.sock");
    assert!(ask(&path, Wish::Debug).await.is_err());
}
