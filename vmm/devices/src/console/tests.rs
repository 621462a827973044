//! The console, as a driver and as people at the host's end see it.

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::unix::net::UnixStream,
    time::Duration,
};

use isopod_virtio::testing::{Buffer, DriverQueue, MmioDriver, PATIENCE};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::*;

struct Rig {
    driver: MmioDriver,
    control: isopod_virtio::Control<Console>,
    queues: Vec<DriverQueue>,
}

fn rig(features: u64) -> Rig {
    let (mut driver, control) = MmioDriver::attach(Console::new().unwrap());
    let queues = driver.start(features, &QUEUES);
    Rig {
        driver,
        control,
        queues,
    }
}

fn stream() -> (Peer, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (Peer::stream(ours).unwrap(), theirs)
}

impl Rig {
    fn write(&mut self, queue: usize, bytes: &[u8]) {
        let at = self.driver.ram.allocate(bytes.len() as u64);
        self.driver.ram.write(at, bytes);
        self.queues[queue].offer(&[Buffer::Readable(at, bytes.len() as u32)]);
        self.driver.notify(queue as u32);
    }

    fn put(&mut self, queue: usize, bytes: &[u8]) {
        self.write(queue, bytes);
        self.driver.used(&mut self.queues[queue]);
    }

    fn room(&mut self, queue: usize) -> u64 {
        let at = self.driver.ram.allocate(64);
        self.queues[queue].offer(&[Buffer::Writable(at, 64)]);
        self.driver.notify(queue as u32);
        at
    }

    fn get(&mut self, queue: usize, at: u64) -> Vec<u8> {
        let used = self.driver.used(&mut self.queues[queue]);
        self.driver.ram.read(at, used.written as usize)
    }

    /// Returns when the device has done all that it was notified of.
    fn turn(&mut self) {
        self.put(3, &message(0, 6, 1));
        // Between two rounds, and so behind the one that took this message.
        self.control.call(|_| ()).unwrap();
    }

    fn tail(&self) -> String {
        self.control.call(|console| console.tail()).unwrap()
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.control.call(|console| console.counters()).unwrap();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }
}

/// id, event, value.
fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    [
        &id.to_le_bytes()[..],
        &event.to_le_bytes(),
        &value.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn the_log_ends_in_the_tail_without_a_reader() {
    let mut rig = rig(0);
    rig.put(1, b"Linux version 6.12\n");
    rig.put(1, b"Kernel panic\n");
    assert_eq!(rig.tail(), "Linux version 6.12\nKernel panic\n");
}

#[test]
fn a_reader_of_the_log_gets_it_and_never_holds_the_guest_up() {
    let mut rig = rig(feature::EVENT_IDX);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let peer = Peer::log(ours.into()).unwrap();
    rig.control
        .call(|console| console.set_log(Some(peer)))
        .unwrap();
    rig.put(1, b"hello\n");
    let mut line = [0; 6];
    theirs.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"hello\n");
    // Nobody reads a megabyte.
    let text = vec![b'x'; MAX_OUTPUT as usize];
    for _ in 0..32 {
        rig.put(1, &text);
    }
    assert!(rig.counter("log_lost") > 0);
    assert_eq!(rig.tail().len(), TAIL);
}

#[test]
fn a_reader_that_leaves_is_forgotten() {
    let mut rig = rig(0);
    let (peer, theirs) = stream();
    rig.control
        .call(|console| console.set_log(Some(peer)))
        .unwrap();
    drop(theirs);
    rig.put(1, b"alone\n");
    rig.put(1, b"again\n");
    assert_eq!(rig.tail(), "alone\nagain\n");
}

#[test]
fn ports_are_negotiated_and_the_interactive_one_opens_when_somebody_comes() {
    let mut rig = rig(MULTIPORT | feature::EVENT_IDX);
    let rooms: Vec<_> = (0..8).map(|_| rig.room(2)).collect();
    let mut rooms = rooms.into_iter();
    let mut hear = |rig: &mut Rig| rig.get(2, rooms.next().unwrap());
    rig.put(3, &message(0, 0, 1));
    assert_eq!(hear(&mut rig), message(0, 1, 1));
    assert_eq!(hear(&mut rig), message(1, 1, 1));
    rig.put(3, &message(0, 3, 1));
    assert_eq!(hear(&mut rig), message(0, 4, 1));
    assert_eq!(hear(&mut rig), message(0, 6, 1));
    rig.put(3, &message(1, 3, 1));
    let name = hear(&mut rig);
    assert_eq!(name[..8], message(1, 7, 1));
    assert_eq!(name[8..], *INTERACTIVE_NAME.as_bytes());

    let (peer, mut theirs) = stream();
    rig.control
        .call(|console| console.set_interactive(Some(peer)))
        .unwrap();
    assert_eq!(hear(&mut rig), message(1, 6, 1));
    rig.put(5, b"# ");
    let mut prompt = [0; 2];
    theirs.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"# ");
    // Nobody in the guest has opened the port: its driver would throw this away.
    theirs.write_all(b"uname\n").unwrap();
    let at = rig.room(4);
    rig.turn();
    assert_eq!(rig.queues[4].take_used(), None, "it waits");
    rig.put(3, &message(1, 6, 1));
    assert_eq!(rig.get(4, at), b"uname\n");
    // And closes it again.
    rig.put(3, &message(1, 6, 0));
    theirs.write_all(b"ls\n").unwrap();
    let at = rig.room(4);
    rig.turn();
    assert_eq!(rig.queues[4].take_used(), None, "it waits");
    rig.put(3, &message(1, 6, 1));
    assert_eq!(rig.get(4, at), b"ls\n");

    drop(theirs);
    rig.driver.notify(4);
    let at = rig.room(4);
    assert_eq!(hear(&mut rig), message(1, 6, 0));
    assert_eq!(rig.queues[4].take_used(), None, "no end of file as a byte");
    let _ = at;
}

#[test]
fn a_guest_waits_for_a_slow_interactive_reader() {
    let mut rig = rig(MULTIPORT);
    let (peer, mut theirs) = stream();
    rig.control
        .call(|console| console.set_interactive(Some(peer)))
        .unwrap();
    let text = vec![b'y'; MAX_OUTPUT as usize];
    let mut written = 0;
    for _ in 0..40 {
        rig.write(5, &text);
        written += text.len();
    }
    let used = |rig: &mut Rig| std::iter::from_fn(|| rig.queues[5].take_used()).count();
    std::thread::sleep(Duration::from_millis(50));
    let early = used(&mut rig);
    assert!(early < 40, "the socket cannot hold it all");
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; written];
        theirs.read_exact(&mut all).map(|()| all)
    });
    let mut answered = early;
    while answered < 40 {
        rig.driver.used(&mut rig.queues[5]);
        answered += 1;
    }
    let all = reader.join().unwrap().unwrap();
    assert!(all.iter().all(|byte| *byte == b'y'));
}

#[test]
fn what_nobody_hears_at_the_interactive_port_is_thrown_away() {
    let mut rig = rig(MULTIPORT);
    let text = vec![b'z'; MAX_OUTPUT as usize];
    for _ in 0..40 {
        rig.put(5, &text);
    }
    assert_eq!(
        rig.counter("interactive_written"),
        40 * u64::from(MAX_OUTPUT)
    );
    let (peer, mut theirs) = stream();
    rig.control
        .call(|console| console.set_interactive(Some(peer)))
        .unwrap();
    rig.put(5, b"now");
    let mut now = [0; 3];
    theirs.read_exact(&mut now).unwrap();
    assert_eq!(&now, b"now", "nothing of before");
}

#[test]
fn a_person_who_floods_waits_for_the_guest() {
    let mut rig = rig(MULTIPORT);
    let (peer, mut theirs) = stream();
    rig.control
        .call(|console| console.set_interactive(Some(peer)))
        .unwrap();
    rig.put(3, &message(1, 6, 1));
    theirs.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(some) = theirs.write(&[b'f'; 4096]) {
        sent += some as u64;
    }
    rig.turn();
    assert_eq!(rig.counter("interactive_read"), 0, "the guest has no room");
    let mut got = 0;
    while got < sent {
        let at = rig.room(4);
        got += rig.get(4, at).len() as u64;
    }
    assert_eq!(got, sent, "nothing was lost");
    // One that leaves makes room for the next.
    let at = rig.room(4);
    drop(theirs);
    let attended = |rig: &Rig| rig.control.call(|console| console.is_attended()).unwrap();
    rig.driver.until(|| (!attended(&rig)).then_some(()));
    let _ = at;
}

#[test]
fn a_descriptor_that_a_person_sends_is_closed_where_his_bytes_are_read() {
    let mut rig = rig(MULTIPORT);
    let (peer, theirs) = stream();
    rig.control
        .call(|console| console.set_interactive(Some(peer)))
        .unwrap();
    let (mut alone, sent) = std::io::pipe().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let rights = [sent.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    let bytes = [IoSlice::new(b"take this")];
    sendmsg(&theirs, &bytes, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    drop(sent);
    rig.put(3, &message(1, 6, 1));
    let at = rig.room(4);
    assert_eq!(rig.get(4, at), b"take this");
    // Were it still open anywhere, this would wait for ever.
    assert_eq!(alone.read(&mut [0]).unwrap(), 0);
}

#[test]
fn input_waits_for_room() {
    let mut rig = rig(0);
    let (peer, mut theirs) = stream();
    rig.control
        .call(|console| console.set_log(Some(peer)))
        .unwrap();
    theirs.write_all(b"early").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let at = rig.room(0);
    assert_eq!(rig.get(0, at), b"early");
}

#[test]
fn nonsense_is_counted() {
    let mut rig = rig(MULTIPORT);
    rig.put(3, &message(9, 3, 1));
    rig.put(3, b"short");
    rig.put(3, &message(0, 77, 1));
    assert_eq!(rig.counter("guest_errors"), 3);
}

#[test]
fn the_conversation_survives_being_saved() {
    let mut rig = rig(MULTIPORT);
    rig.put(3, &message(0, 0, 1));
    rig.put(3, &message(1, 3, 1));
    let (peer, _theirs) = stream();
    rig.control
        .call(|console| console.set_interactive(Some(peer)))
        .unwrap();
    rig.driver.notify(3);
    rig.driver.until(|| {
        let open = |c: &mut Console| c.control.ports[1].host_open;
        rig.control.call(open).unwrap().then_some(())
    });
    let state = rig.driver.save();
    let (driver, control) = rig.driver.restore(Console::new().unwrap(), state);
    let mut rig = Rig {
        driver,
        control,
        queues: rig.queues,
    };
    let mut heard = Vec::new();
    while heard.last() != Some(&message(1, 6, 0)) {
        let at = rig.room(2);
        let next = rig.get(2, at);
        heard.push(next);
    }
    assert_eq!(heard[0], message(0, 1, 1), "what waited was not lost");
}
