use std::time::SystemTime;

use super::*;

fn exit(code: u32) -> Exit {
    Exit {
        pid: 5,
        code,
        at: SystemTime::UNIX_EPOCH,
    }
}

fn created() -> Process {
    let mut process = Process::creating();
    assert_eq!(process.created(5), None);
    process
}

fn running() -> Process {
    let mut process = created();
    process.starting();
    assert_eq!(process.started(5), None);
    process
}

fn paused() -> Process {
    let mut process = running();
    process.paused();
    process
}

fn stopped() -> Process {
    let mut process = running();
    assert!(process.exited(exit(3)));
    process
}

fn starting() -> Process {
    let mut process = created();
    process.starting();
    process
}

/// What can be done: start, kill, exec, pause, resume, delete.
fn abilities(process: &Process) -> [bool; 6] {
    [
        process.can_start(),
        process.can_kill(),
        process.can_exec(),
        process.can_pause(),
        process.can_resume(),
        process.can_delete(),
    ]
}

#[test]
fn every_state_allows_its_operations_and_no_others() {
    let table = [
        (Process::creating(), Status::Created, [false; 6]),
        (
            created(),
            Status::Created,
            [true, true, true, false, false, true],
        ),
        (
            starting(),
            Status::Created,
            [false, true, true, false, false, false],
        ),
        (
            running(),
            Status::Running,
            [false, true, true, true, false, false],
        ),
        (
            paused(),
            Status::Paused,
            [false, true, false, false, true, false],
        ),
        (
            stopped(),
            Status::Stopped,
            [false, false, false, false, false, true],
        ),
    ];
    for (process, status, expected) in table {
        assert_eq!(process.state().status, status, "{process:?}");
        assert_eq!(abilities(&process), expected, "{process:?}");
    }
}

#[test]
fn an_end_before_the_answer_is_kept_until_it_is_told() {
    let mut process = Process::creating();
    assert!(!process.exited(exit(1)));
    assert_eq!(process.state().exit, None);
    assert_eq!(process.created(5), Some(exit(1)));
    assert!(process.is_stopped());

    let mut process = starting();
    assert!(!process.exited(exit(2)));
    assert_eq!(process.state().status, Status::Created);
    assert_eq!(process.started(5), Some(exit(2)));
    assert_eq!(process.state().exit, Some(exit(2)));
}

#[test]
fn a_process_ends_once() {
    let mut process = stopped();
    assert!(!process.exited(exit(9)));
    assert_eq!(process.exit(), Some(exit(3)));
    assert_eq!(process.machine_ended(SystemTime::now()), None);
    assert_eq!(process.started(6), None);
    assert!(process.is_stopped());
}

#[test]
fn a_refused_start_can_be_tried_again() {
    let mut process = starting();
    assert_eq!(process.start_refused(), None);
    assert!(process.can_start() && process.can_delete());
}

#[test]
fn the_machines_end_is_the_end_of_every_process_that_was_known() {
    let now = SystemTime::now();
    for mut process in [created(), starting(), running(), paused()] {
        let told = process.machine_ended(now).unwrap();
        assert_eq!((told.code, told.at), (137, now));
        assert!(process.is_stopped());
    }
    // Its create fails: nobody knows it.
    let mut process = Process::creating();
    assert_eq!(process.machine_ended(now), None);
    // An exec that was registered and not started.
    let mut process = Process::creating();
    process.created(0);
    assert_eq!(process.machine_ended(now), None);
    assert!(process.is_stopped());
    // Its own end came first.
    let mut process = starting();
    process.exited(exit(4));
    assert_eq!(process.machine_ended(now), Some(exit(4)));
}

#[test]
fn a_second_delete_is_refused_while_the_first_is_under_way() {
    let mut process = stopped();
    process.set_deleting(true);
    assert!(!process.can_delete());
    process.set_deleting(false);
    assert!(process.can_delete());
}

#[tokio::test]
async fn waiters_hear_of_the_end_before_and_after_it() {
    let mut process = running();
    let mut early = process.watch();
    process.exited(exit(3));
    for watch in [&mut early, &mut process.watch()] {
        assert_eq!(
            *watch.wait_for(Option::is_some).await.unwrap(),
            Some(exit(3))
        );
    }
}
