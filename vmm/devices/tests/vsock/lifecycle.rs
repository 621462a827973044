//! Before there is a driver, after it is gone, saved and restored.

use std::{io::Write, os::unix::net::UnixListener, time::Duration};

use isopod_devices::vsock::{VsockConfig, VsockDevice, VsockError, VsockState, packet::Op};
use isopod_virtio::{QueueT, testing::Buffer};
use rstest::rstest;

use crate::{
    rig::{GUEST_CID, Rig},
    socket::{GuestSocket, read_to_end},
};

#[test]
fn the_configuration_space_is_the_context_id() {
    let rig = Rig::new();
    assert_eq!(rig.device.config_space(), GUEST_CID.to_le_bytes());
}

#[rstest]
#[case(0)]
#[case(1)]
#[case(2)]
#[case(u32::MAX)]
fn reserved_context_ids_are_refused(#[case] cid: u32) {
    let rig = Rig::new();
    let listener = UnixListener::bind(rig.path("other.sock")).unwrap();
    let config = VsockConfig {
        guest_cid: cid,
        connect_dir: rig.dir.path().into(),
    };
    assert!(matches!(
        VsockDevice::new(config, listener),
        Err(VsockError::ReservedCid(refused)) if refused == cid
    ));
}

#[test]
fn host_programs_wait_for_a_driver() {
    let mut rig = Rig::without_buffers(16, true);
    let _stream = rig.call(1024);
    assert!(
        !rig.serve_host(Duration::from_millis(20)),
        "nobody is let in"
    );
    rig.refill();
    rig.kick();
    rig.expect(Op::Request);
}

#[test]
fn a_reset_ends_everything_and_the_next_driver_starts_anew() {
    let mut rig = Rig::new();
    let (mut guest_made, _) = rig.guest_connection(4096);
    let (mut host_made, _) = rig.host_connection(4096);
    let _calling = std::os::unix::net::UnixStream::connect(rig.path("vsock.sock")).unwrap();
    rig.serve_host(Duration::from_millis(20));
    rig.device.reset();
    assert_eq!(read_to_end(&mut guest_made), b"");
    assert_eq!(read_to_end(&mut host_made), b"");
    assert_eq!(rig.device.connections(), 0);
    let _stream = rig.call(1024);
    assert!(
        !rig.serve_host(Duration::from_millis(20)),
        "nobody is let in"
    );
    rig.kick();
    rig.expect(Op::Request);
}

#[test]
fn queues_that_are_stopped_do_not_make_the_device_spin() {
    let mut rig = Rig::new();
    let (mut stream, mut socket) = rig.host_connection(4096);
    rig.rx.device.set_ready(false);
    stream.write_all(b"meanwhile").unwrap();
    assert!(rig.serve_host(Duration::from_secs(1)), "it is noticed");
    let mut turns = 0;
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_millis(350) {
        turns += u32::from(rig.serve_host(Duration::from_millis(10)));
    }
    assert!((1..=4).contains(&turns), "{turns} turns");
    rig.rx.device.set_ready(true);
    let (header, payload) = rig.expect(Op::Rw);
    socket.note(&header);
    assert_eq!(payload, b"meanwhile");
}

#[test]
fn a_restored_device_tells_the_guest_that_its_connections_are_gone() {
    let mut rig = Rig::new();
    let _connection = rig.host_connection(4096);
    let json = serde_json::to_string(&rig.device.save()).unwrap();
    let state: VsockState = serde_json::from_str(&json).unwrap();

    std::fs::remove_file(rig.path("vsock.sock")).unwrap();
    let listener = UnixListener::bind(rig.path("vsock.sock")).unwrap();
    let config = VsockConfig {
        guest_cid: GUEST_CID as u32,
        connect_dir: rig.dir.path().into(),
    };
    rig.device = VsockDevice::restore(config, listener, state).unwrap();
    rig.kick();
    assert!(rig.event.driver.take_used().is_none(), "no room for it yet");

    let buffer = rig.ram.allocate(16);
    rig.ram.write(buffer, &[0xff; 16]);
    rig.event.driver.offer(&[Buffer::Writable(buffer, 4)]);
    let signals = rig.handle(isopod_devices::vsock::Cause::Queue);
    assert!(signals.event);
    assert_eq!(rig.event.driver.take_used().unwrap().written, 4);
    assert_eq!(rig.ram.read(buffer, 4), [0; 4]);

    // Once; and the guest's old packets find nobody, while host ports go on.
    rig.event.driver.offer(&[Buffer::Writable(buffer, 4)]);
    rig.kick();
    assert!(rig.event.driver.take_used().is_none());
    let old = GuestSocket::new(1 << 30, 1024, 4096);
    rig.send(old.header(Op::Rw), &[]);
    rig.expect(Op::Rst);
    let _stream = rig.call(1024);
    let (request, _) = rig.expect(Op::Request);
    assert_eq!(request.src_port, (1 << 30) + 1);
}

#[test]
fn a_state_of_another_guest_is_refused() {
    let rig = Rig::new();
    let listener = UnixListener::bind(rig.path("other.sock")).unwrap();
    let config = VsockConfig {
        guest_cid: 77,
        connect_dir: rig.dir.path().into(),
    };
    assert!(matches!(
        VsockDevice::restore(config, listener, rig.device.save()),
        Err(VsockError::OtherCid {
            saved: 42,
            configured: 77
        })
    ));
}
