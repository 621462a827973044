use super::*;

fn id(container: &str, exec: &str) -> ProcessId {
    ProcessId {
        container: container.into(),
        exec: exec.into(),
    }
}

fn exit(code: u32) -> Exit {
    Exit {
        pid: 5,
        code,
        at: SystemTime::UNIX_EPOCH,
    }
}

fn state() -> (State, broadcast::Receiver<Event>) {
    let (events, received) = broadcast::channel(16);
    (State::new(events), received)
}

/// A container whose init runs with this pid.
fn add(state: &mut State, container: &str, pid: u32) {
    let id = id(container, "");
    state.insert(&id).unwrap();
    let init = state.find_mut(&id).unwrap();
    init.created(pid);
    init.starting();
    init.started(pid);
}

fn told(events: &mut broadcast::Receiver<Event>) -> Vec<(String, String, u32)> {
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Exited(id, exit) = event {
            told.push((id.container, id.exec, exit.code));
        }
    }
    told
}

#[test]
fn names_are_unique_and_execs_need_their_container() {
    let (mut state, _events) = state();
    add(&mut state, "a", 1);
    assert!(matches!(
        state.insert(&id("a", "")),
        Err(Error::AlreadyExists(_))
    ));
    assert!(matches!(
        state.insert(&id("b", "e")),
        Err(Error::NotFound(_))
    ));
    state.insert(&id("a", "e")).unwrap();
    assert!(matches!(
        state.insert(&id("a", "e")),
        Err(Error::AlreadyExists(_))
    ));
    state.remove(&id("a", "e"));
    state.insert(&id("a", "e")).unwrap();
    state.remove(&id("a", ""));
    assert!(matches!(state.find(&id("a", "e")), Err(Error::NotFound(_))));
}

#[test]
fn later_containers_join_the_first_while_it_lives() {
    let (mut state, _events) = state();
    assert_eq!(state.first_pid("a"), None);
    add(&mut state, "a", 11);
    assert_eq!(state.first_pid("a"), None);
    assert_eq!(state.first_pid("b"), Some(11));
    add(&mut state, "b", 12);
    assert_eq!(state.first_pid("c"), Some(11));
    state.exited(&id("a", ""), exit(0));
    assert_eq!(state.first_pid("c"), None);
}

#[test]
fn the_machines_end_is_told_once_for_every_process_execs_first() {
    let (mut state, mut events) = state();
    add(&mut state, "a", 11);
    state.insert(&id("a", "e")).unwrap();
    let exec = state.find_mut(&id("a", "e")).unwrap();
    exec.created(0);
    exec.starting();
    exec.started(13);
    add(&mut state, "b", 12);
    state.exited(&id("b", ""), exit(3));
    assert_eq!(told(&mut events), [("b".into(), String::new(), 3)]);
    state.machine_ended(SystemTime::now());
    let expected = [
        ("a".into(), "e".into(), 137),
        ("a".into(), String::new(), 137),
    ];
    assert_eq!(told(&mut events), expected);
    state.machine_ended(SystemTime::now());
    assert_eq!(told(&mut events), []);
}

#[test]
fn a_guest_cannot_make_up_containers() {
    let (mut state, mut events) = state();
    state.exited(&id("ghost", ""), exit(0));
    state.out_of_memory("ghost".into());
    assert!(events.try_recv().is_err());
    add(&mut state, "a", 11);
    state.out_of_memory("a".into());
    assert!(matches!(events.try_recv(), Ok(Event::OutOfMemory { container }) if container == "a"));
}
