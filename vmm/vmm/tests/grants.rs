//! Processors that the host grants and takes back, as guests of a few instructions see it. Needs root and
//! /dev/kvm, as `process` does.

mod rig;

use std::{fs, io::Read, thread, time::Duration};

use isopod_config::SlotsConfig;
use isopod_control::monitor::ResizeRequest;
use rig::{
    Files, Monitor, Wanted,
    acts::{answer, refused},
    ask,
    code::{COUNT, map_devices, wait_for},
    crowd, print, start_with,
};
use ttrpc::Code;

/// The first device behind those that every machine has; its target is its driver's to read.
const BALLOON: u32 = 2;

/// The first wakes the second, says so, and does it once more when the balloon's target is a MiB. The
/// second counts from its beginning on.
fn pair(save: Option<&Files>, restore: Option<&Files>) -> Option<Monitor> {
    let first = [
        map_devices(),
        vec![0xbf, 0x00, 0x00, 0x01, 0x00], // mov edi, 0x10000: the third level
        crowd::prepare(),
        crowd::wake(),
        print("sent\n"),
        wait_for(BALLOON, 0, 256),
        crowd::wake(),
        print("again\n"),
        crowd::REST.to_vec(),
    ];
    let second = [crowd::store(0x200_0000, 0), COUNT.to_vec()];
    let slots = SlotsConfig {
        balloon: true,
        ..SlotsConfig::default()
    };
    start_with(Wanted {
        code: &crowd::apart(first.concat(), second.concat()),
        cpus: 1,
        spare_cpus: 1,
        memory_mib: 64,
        save,
        restore,
        slots: Some(&slots),
        ..Wanted::default()
    })
}

/// A line of [`COUNT`].
fn number(line: &str) -> u32 {
    let letters = line.trim_end().bytes();
    letters.fold(0, |number, letter| {
        assert!((b'a'..=b'p').contains(&letter), "{line:?}");
        number << 4 | u32::from(letter - b'a')
    })
}

impl Monitor {
    /// Accesses to ports of the second processor, which does not run.
    fn said(&self) -> u64 {
        let metrics = ask!(self, metrics).unwrap();
        assert_eq!(metrics.cpus, 1);
        let second = metrics.vcpus.iter().find(|vcpu| vcpu.id == 1);
        second.expect("it runs").ports
    }

    /// Ticks of processor time that the second processor's thread has had.
    fn ticks(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let stats =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
        let stat = stats.into_iter().find(|stat| stat.contains("(vcpu-1)"));
        let stat = stat.unwrap();
        // Behind the name: user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let times = fields.split_whitespace().skip(11).take(2);
        times.map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// The second processor says nothing and has no time, however long one looks.
    fn stands(&self) {
        let before = (self.said(), self.ticks());
        thread::sleep(Duration::from_millis(200));
        assert_eq!((self.said(), self.ticks()), before);
    }

    /// The last number that it has said, while it stands.
    fn last(&mut self) -> Option<u32> {
        let mut bytes = Vec::new();
        self.console.set_nonblocking(true).unwrap();
        let _ = self.console.read_to_end(&mut bytes);
        self.console.set_nonblocking(false).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().last().map(number)
    }
}

#[test]
fn a_processor_runs_only_while_the_host_grants_it() {
    let Some(mut monitor) = pair(None, None) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    assert_eq!(monitor.line(), "sent\n");
    monitor.stands();
    assert_eq!((monitor.said(), monitor.last()), (0, None));
    // What was sent to it has waited.
    monitor.grant(2).unwrap();
    assert_eq!(number(&monitor.line()), 1);
    assert_eq!(number(&monitor.line()), 2);

    monitor.grant(1).unwrap();
    monitor.stands();
    let last = monitor.last().unwrap_or(2);
    monitor.grant(2).unwrap();
    assert!(number(&monitor.line()) > last, "it goes on where it was");

    // It is begun anew while it stands.
    monitor.grant(1).unwrap();
    monitor.resize(None, Some(1)).unwrap();
    while !monitor.line().ends_with("again\n") {}
    monitor.stands();
    monitor.grant(2).unwrap();
    assert_eq!(number(&monitor.line()), 1);
    monitor.lives();
}

#[test]
fn what_cannot_be_granted_is_refused_and_changes_nothing() {
    let Some(mut monitor) = pair(None, None) else {
        return;
    };
    for cpus in [0, 3, u32::MAX] {
        refused(monitor.grant(cpus), Code::OUT_OF_RANGE, "there are 2");
    }
    let mut both = ResizeRequest::new();
    both.cpus = Some(2);
    both.hotplug_mib = Some(128);
    let told = answer(ask!(monitor, resize, both));
    refused(told, Code::FAILED_PRECONDITION, "memory");
    assert_eq!(ask!(monitor, metrics).unwrap().cpus, 1);
    // Before the guest begins, and again what is so.
    monitor.grant(2).unwrap();
    monitor.grant(2).unwrap();
    ask!(monitor, boot).unwrap();
    // Both speak at once.
    let counts = |line: &str| line.len() == 9 && line.bytes().all(|byte| byte <= b'p');
    while !counts(&monitor.line()) {}
}

#[test]
fn a_restored_machine_has_what_was_granted() {
    let (before, after) = (Files::new(), Files::new());
    let Some(mut monitor) = pair(Some(&before), None) else {
        return;
    };
    ask!(monitor, boot).unwrap();
    assert_eq!(monitor.line(), "sent\n");
    monitor.grant(2).unwrap();
    assert_eq!(number(&monitor.line()), 1);
    monitor.grant(1).unwrap();
    let last = monitor.last().unwrap_or(1);
    ask!(monitor, pause).unwrap();
    // In a machine that is paused: it does not run before it is resumed.
    ask!(monitor, save).unwrap();
    drop(monitor);

    let mut copy = pair(Some(&after), Some(&before)).unwrap();
    ask!(copy, boot).unwrap_or_else(|error| panic!("{error:?}: {}", copy.errors()));
    copy.stands();
    assert_eq!(copy.last(), None);
    copy.grant(2).unwrap();
    assert!(number(&copy.line()) > last);
    ask!(copy, pause).unwrap();
    ask!(copy, save).unwrap();
    drop(copy);

    // Two were granted, whatever a machine that boots would have.
    let mut again = pair(None, Some(&after)).unwrap();
    ask!(again, boot).unwrap();
    assert_eq!(ask!(again, metrics).unwrap().cpus, 2);
    assert!(number(&again.line()) > last);
}
