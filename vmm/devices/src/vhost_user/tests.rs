//! The front end against a back end in a thread, and against one that misbehaves.

use std::{
    io,
    os::unix::net::UnixListener,
    sync::{Arc, Mutex, atomic::AtomicUsize},
    thread::JoinHandle,
};

use isopod_memory::{DirtyBitmap, GuestAddressSpace, GuestMemoryHandle};
use isopod_virtio::{
    ChainLimits, Control, LiveQueue, QueueCounters,
    testing::{Buffer, DriverQueue, GuestRam, MmioDriver},
};
use vhost::vhost_user::{
    Listener,
    message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures},
};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use vmm_sys_util::epoll::EventSet;

use super::*;

type Vring = VringMutex<GuestMemoryHandle>;

const LIMITS: ChainLimits = ChainLimits {
    max_readable: 64,
    max_writable: 64,
    indirect: false,
};

/// Answers what it reads, on two queues.
struct Echo {
    memory: GuestMemoryHandle,
    features: u64,
    hang: Arc<Hang>,
}

/// What may hold up a back end.
#[derive(Default)]
struct Hang {
    /// Taken for a moment in each act.
    held: Mutex<()>,
    /// How many acts came to that.
    reached: AtomicUsize,
}

impl Hang {
    fn pass(&self) {
        self.reached.fetch_add(1, Ordering::SeqCst);
        drop(self.held.lock().unwrap());
    }
}

impl VhostUserBackendMut for Echo {
    type Bitmap = DirtyBitmap;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn acked_features(&mut self, _features: u64) {
        self.hang.pass();
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, _memory: GuestMemoryHandle) -> io::Result<()> {
        Ok(())
    }

    fn handle_event(
        &mut self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let vring = &vrings[usize::from(event)];
        let memory = self.memory.memory();
        let mut counters = QueueCounters::default();
        let mut locked = vring.get_mut();
        self.hang.pass();
        let mut queue =
            LiveQueue::new(locked.get_queue_mut(), &memory, LIMITS, &mut counters).unwrap();
        loop {
            while let Some(mut chain) = queue.pop().unwrap() {
                let mut bytes = vec![0; chain.readable.left()];
                chain.readable.read(&mut bytes).unwrap();
                chain.writable.write(&bytes).unwrap();
                queue.complete(chain.head, bytes.len() as u32).unwrap();
            }
            if !queue.listen().unwrap() {
                break;
            }
        }
        if queue.finish() {
            locked.signal_used_queue()?;
        }
        Ok(())
    }
}

/// A back end that serves one connection; it ends when that does.
fn back_end(features: u64) -> (UnixStream, JoinHandle<()>) {
    let (connection, _hang, thread) = back_end_that_hangs(features);
    (connection, thread)
}

fn back_end_that_hangs(features: u64) -> (UnixStream, Arc<Hang>, JoinHandle<()>) {
    let hang = Arc::new(Hang::default());
    let its = Arc::clone(&hang);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let connection = UnixStream::connect(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let memory = GuestMemoryHandle::new(GuestMemory::new());
        let echo = Echo {
            memory: memory.clone(),
            features,
            hang: its,
        };
        let echo = Arc::new(Mutex::new(echo));
        let mut daemon = VhostUserDaemon::new("echo".into(), echo, memory).unwrap();
        daemon.start(&mut Listener::from(listener)).unwrap();
        let _ = daemon.wait();
    });
    (connection, hang, thread)
}

/// With a feature of its kind that the front end does not know.
fn usual() -> u64 {
    feature::VERSION_1
        | feature::EVENT_IDX
        | 1 << 3
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

fn config() -> VhostUserConfig {
    VhostUserConfig {
        queue_sizes: SmallVec::from_elem(64, 2),
        ..VhostUserConfig::file_system("isopod", 1, 64).unwrap()
    }
}

fn watchdog() -> Watchdog {
    Watchdog::start(PATIENCE, || ()).unwrap()
}

fn rig() -> (MmioDriver, Control<VhostUser>) {
    let (connection, _thread) = back_end(usual());
    let device = VhostUser::new(config(), connection, &watchdog()).unwrap();
    MmioDriver::attach_to(GuestRam::shared(16 << 20), device)
}

fn echo(driver: &mut MmioDriver, index: u32, queue: &mut DriverQueue, word: &[u8]) -> Vec<u8> {
    let at = driver.ram.allocate(64);
    driver.ram.write(at, word);
    let bytes = word.len() as u32;
    queue.offer(&[
        Buffer::Readable(at, bytes),
        Buffer::Writable(at + 32, bytes),
    ]);
    driver.notify(index);
    let used = driver.used(queue);
    driver.ram.read(at + 32, used.written as usize)
}

#[test]
fn requests_and_answers_pass_by() {
    let (mut driver, _control) = rig();
    let mut queues = driver.start(feature::EVENT_IDX, &[64, 32]);
    for word in [&b"one"[..], b"two", b"three"] {
        assert_eq!(echo(&mut driver, 0, &mut queues[0], word), word);
        assert_eq!(echo(&mut driver, 1, &mut queues[1], word), word);
    }
    // The back end raised the interrupt itself, which the status must show all the same.
    driver.until(|| Some(driver.interrupt_within(std::time::Duration::ZERO)));
    assert_eq!(driver.read(0x60) & 1, 1);
}

#[test]
fn only_features_that_both_sides_know_are_offered() {
    let (driver, _control) = rig();
    let expected = feature::VERSION_1 | feature::EVENT_IDX;
    assert_eq!(driver.device_features(), expected);
    let config = driver.config(40);
    assert_eq!(config[..8], *b"isopod\0\0");
    assert_eq!(config[36..], [1, 0, 0, 0]);
}

#[test]
fn a_driver_may_reset_and_start_over() {
    let (mut driver, _control) = rig();
    for n in 0..5 {
        let mut queues = driver.start(feature::EVENT_IDX, &[64, 32]);
        for _ in 0..=n {
            assert_eq!(echo(&mut driver, 1, &mut queues[1], b"again"), b"again");
        }
        driver.reset();
        let at = driver.ram.allocate(16);
        queues[1].offer(&[Buffer::Readable(at, 16)]);
        driver.notify(1);
        assert_eq!(queues[1].take_used(), None, "after the reset");
    }
    assert!(driver.failures.lock().unwrap().is_empty());
}

#[test]
fn only_queues_that_are_set_up_are_served() {
    let (mut driver, _control) = rig();
    let mut queues = driver.start(0, &[64]);
    assert_eq!(echo(&mut driver, 0, &mut queues[0], b"alone"), b"alone");
}

#[test]
fn pausing_stops_the_back_end_and_keeps_the_positions() {
    let (mut driver, _control) = rig();
    let mut queues = driver.start(feature::EVENT_IDX, &[64, 32]);
    for _ in 0..7 {
        assert_eq!(echo(&mut driver, 0, &mut queues[0], b"word"), b"word");
    }
    let state = driver.save();
    assert_eq!(state.registers.queues[0].next_avail, 7);
    assert_eq!(state.registers.queues[0].next_used, 7);
    let at = driver.ram.allocate(16);
    queues[0].offer(&[Buffer::Readable(at, 4), Buffer::Writable(at + 8, 4)]);
    driver.notify(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(queues[0].take_used(), None, "while paused");
    driver.transport.resume().unwrap();
    driver.used(&mut queues[0]);
    assert_eq!(echo(&mut driver, 0, &mut queues[0], b"more"), b"more");

    // And another process can take over between save and restore.
    let state = driver.save();
    let (connection, _thread) = back_end(usual());
    let device = VhostUser::new(config(), connection, &watchdog()).unwrap();
    let (mut driver, _control) = driver.restore(device, state);
    assert_eq!(echo(&mut driver, 0, &mut queues[0], b"there"), b"there");
}

#[test]
fn a_back_end_that_dies_fails_its_device_for_good() {
    let (connection, _thread) = back_end(usual());
    let end = connection.try_clone().unwrap();
    let device = VhostUser::new(config(), connection, &watchdog()).unwrap();
    let (mut driver, _control) = MmioDriver::attach_to(GuestRam::shared(16 << 20), device);
    driver.start(0, &[64, 32]);
    end.shutdown(std::net::Shutdown::Both).unwrap();
    driver.until(|| (driver.status() & 64 != 0).then_some(()));
    assert_eq!(
        *driver.failures.lock().unwrap(),
        ["the back end: the process that serves the device is gone"]
    );
    driver.start(0, &[64, 32]);
    assert_eq!(driver.status() & 64, 64, "another try cannot help");
}

/// A back end that hangs at whatever comes next while the lock is held; its front end.
fn hanging() -> (Arc<Hang>, Watchdog, VhostUser) {
    let (connection, hang, _thread) = back_end_that_hangs(usual());
    let watchdog = Watchdog::start(Duration::from_millis(100), || ()).unwrap();
    let device = VhostUser::new(config(), connection, &watchdog).unwrap();
    (hang, watchdog, device)
}

/// A request that the back end hangs in.
fn ask_in_vain(driver: &mut MmioDriver, queue: &mut DriverQueue, hang: &Hang) {
    let before = hang.reached.load(Ordering::SeqCst);
    let at = driver.ram.allocate(16);
    queue.offer(&[Buffer::Readable(at, 4), Buffer::Writable(at + 8, 4)]);
    driver.notify(0);
    driver.until(|| (hang.reached.load(Ordering::SeqCst) > before).then_some(()));
}

#[test]
fn a_back_end_that_never_answers_is_refused() {
    let watchdog = Watchdog::start(Duration::from_millis(100), || ()).unwrap();
    let (connection, _nobody) = UnixStream::pair().unwrap();
    let refused = VhostUser::new(config(), connection, &watchdog).err();
    let refused = refused.unwrap().to_string();
    assert!(refused.contains("the negotiation took longer"), "{refused}");
}

#[test]
fn a_back_end_that_hangs_at_the_start_fails_its_device() {
    let (hang, _watchdog, device) = hanging();
    let (mut driver, _control) = MmioDriver::attach_to(GuestRam::shared(16 << 20), device);
    let held = hang.held.lock().unwrap();
    driver.start(0, &[64, 32]);
    driver.until(|| (driver.status() & 64 != 0).then_some(()));
    drop(held);
    let failures = driver.failures.lock().unwrap().concat();
    assert!(
        failures.contains("starting the queues took longer"),
        "{failures}"
    );
}

#[test]
fn a_back_end_that_hangs_in_a_request_holds_up_no_reset() {
    let (hang, _watchdog, device) = hanging();
    let (mut driver, _control) = MmioDriver::attach_to(GuestRam::shared(16 << 20), device);
    let mut queues = driver.start(0, &[64, 32]);
    assert_eq!(echo(&mut driver, 0, &mut queues[0], b"word"), b"word");
    let held = hang.held.lock().unwrap();
    ask_in_vain(&mut driver, &mut queues[0], &hang);
    // The reset returns, and the device is lost: the old driver's request may still be under way.
    driver.reset();
    driver.start(0, &[64, 32]);
    assert_eq!(driver.status() & 64, 64);
    drop(held);
    let failures = driver.failures.lock().unwrap().concat();
    assert!(
        failures.contains("stopping the queues took longer"),
        "{failures}"
    );
}

#[test]
fn a_back_end_that_hangs_holds_up_no_pause() {
    let (hang, _watchdog, device) = hanging();
    let (mut driver, _control) = MmioDriver::attach_to(GuestRam::shared(16 << 20), device);
    let mut queues = driver.start(0, &[64, 32]);
    let held = hang.held.lock().unwrap();
    ask_in_vain(&mut driver, &mut queues[0], &hang);
    driver.transport.pause().unwrap();
    driver.until(|| (driver.status() & 64 != 0).then_some(()));
    drop(held);
}

#[test]
fn memory_that_is_no_files_cannot_be_shared() {
    let (connection, _thread) = back_end(usual());
    let device = VhostUser::new(config(), connection, &watchdog()).unwrap();
    let (mut driver, _control) = MmioDriver::attach(device);
    driver.start(0, &[64, 32]);
    assert_eq!(driver.status() & 64, 64);
    assert!(driver.failures.lock().unwrap()[0].contains("is not a file's"));
}

#[test]
fn a_back_end_that_lacks_what_is_needed_is_refused() {
    for lacking in [feature::VERSION_1, 1 << 30] {
        let (connection, _thread) = back_end(usual() & !lacking);
        let refused = VhostUser::new(config(), connection, &watchdog()).err();
        assert!(matches!(refused, Some(VhostUserError::Lacks(_))));
    }

    let (connection, _thread) = back_end(usual());
    let three = VhostUserConfig::vsock(3, 64);
    assert!(matches!(
        VhostUser::new(three, connection, &watchdog()).err(),
        Some(VhostUserError::Queues {
            offered: 2,
            needed: 3
        })
    ));

    let (connection, other) = UnixStream::pair().unwrap();
    drop(other);
    assert!(VhostUser::new(config(), connection, &watchdog()).is_err());
}

#[test]
fn a_tag_must_fit_the_configuration_space() {
    assert!(VhostUserConfig::file_system("", 1, 64).is_none());
    assert!(VhostUserConfig::file_system(&"x".repeat(37), 1, 64).is_none());
    let longest = VhostUserConfig::file_system(&"x".repeat(36), 2, 64).unwrap();
    assert_eq!(longest.config.len(), 40);
    assert_eq!(longest.queue_sizes.len(), 3);
}
