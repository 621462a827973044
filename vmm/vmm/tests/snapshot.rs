//! A machine that is saved and goes on in another process. Needs root and /dev/kvm, as `process` does.

mod rig;

use std::{
    fs::File,
    os::unix::{
        fs::{FileExt, MetadataExt},
        process::ExitStatusExt,
    },
};

use rig::{FOREVER, Files, Monitor, Wanted, ask, code::COUNT, print, start, start_with};
use rstest::rstest;
use sha2::{Digest, Sha256};

fn counting<'a>(save: Option<&'a Files>, restore: Option<&'a Files>) -> Wanted<'a> {
    Wanted {
        code: &COUNT,
        cpus: 2,
        spare_cpus: 0,
        memory_mib: 64,
        save,
        restore,
        ..Wanted::default()
    }
}

fn number(monitor: &mut Monitor) -> u32 {
    let line = monitor.line();
    let letters = line.trim_end().bytes();
    letters.fold(0, |number, letter| {
        assert!((b'a'..=b'p').contains(&letter), "{line:?}");
        number << 4 | u32::from(letter - b'a')
    })
}

/// The lines that a machine wrote before it was paused.
fn last_number(monitor: &mut Monitor) -> u32 {
    // What it writes from now on is nothing: each line is in the socket when the machine rests.
    let mut last = None;
    monitor.console.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let _ = std::io::Read::read_to_end(&mut monitor.console, &mut bytes);
    monitor.console.set_nonblocking(false).unwrap();
    for line in bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| line.len() == 8)
    {
        let number = line
            .iter()
            .fold(0, |number, letter| number << 4 | u32::from(letter - b'a'));
        last = Some(number);
    }
    last.unwrap_or(0)
}

/// A machine that was saved after it had said some numbers, and the last of them.
fn save_one(files: &Files) -> Option<(Monitor, u32)> {
    let mut monitor = start_with(counting(Some(files), None))?;
    ask!(monitor, boot).unwrap();
    let seen = (0..3).map(|_| number(&mut monitor)).max();
    assert_eq!(seen, Some(3));
    ask!(monitor, pause).unwrap();
    let last = last_number(&mut monitor).max(3);
    let saved = ask!(monitor, save).unwrap_or_else(|error| {
        panic!("{error:?}: {}", monitor.errors());
    });
    assert!(saved.memory_bytes > 0 && saved.state_bytes > 0);
    Some((monitor, last))
}

#[test]
fn a_saved_machine_goes_on_in_another_process() {
    let (first, second) = (Files::new(), Files::new());
    let Some((mut original, last)) = save_one(&first) else {
        return;
    };
    // Holes where nothing was.
    let memory = first.memory.metadata().unwrap();
    assert_eq!(memory.len(), (64 << 20) + 4096);
    assert!(memory.blocks() * 512 < 1 << 20, "{}", memory.blocks());

    let mut copy = start_with(counting(Some(&second), Some(&first))).unwrap();
    ask!(copy, boot).unwrap_or_else(|error| panic!("{error:?}: {}", copy.errors()));
    assert_eq!(number(&mut copy), last + 1);
    assert_eq!(number(&mut copy), last + 2);
    // The one that was saved goes on by itself, from the same number.
    ask!(original, resume).unwrap();
    assert_eq!(number(&mut original), last + 1);

    // What was restored can be saved again: what it has written is not in the first file.
    ask!(copy, pause).unwrap();
    let later = last_number(&mut copy).max(last + 2);
    ask!(copy, save).unwrap_or_else(|error| panic!("{error:?}: {}", copy.errors()));
    for (files, last) in [(&second, later), (&first, last)] {
        let mut again = start_with(counting(None, Some(files))).unwrap();
        ask!(again, boot).unwrap();
        assert_eq!(number(&mut again), last + 1);
        assert_eq!(number(&mut again), last + 2);
        ask!(again, shut_down).unwrap();
        assert_eq!(again.ends().code(), Some(0));
    }
}

#[test]
fn what_cannot_be_saved_is_refused() {
    let files = Files::new();
    let Some(mut running) = start_with(Wanted {
        code: &[print("up\n"), FOREVER.to_vec()].concat(),
        ..counting(Some(&files), None)
    }) else {
        return;
    };
    let told = |error: ttrpc::Error| error.to_string();
    assert!(told(ask!(running, save).unwrap_err()).contains("has not booted"));
    ask!(running, boot).unwrap();
    running.line();
    assert!(told(ask!(running, save).unwrap_err()).contains("running"));
    assert_eq!(files.state.metadata().unwrap().len(), 0);
    ask!(running, pause).unwrap();
    ask!(running, save).unwrap();

    let without = start(&FOREVER, 1).unwrap();
    ask!(without, boot).unwrap();
    ask!(without, pause).unwrap();
    let refused = told(ask!(without, save).unwrap_err());
    assert!(refused.contains("descriptors.snapshot.save"), "{refused}");
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A state file of this content, with the memory of `files`.
fn with_state(files: &Files, bytes: &[u8]) -> Files {
    let state = tempfile::tempfile().unwrap();
    state.write_all_at(bytes, 0).unwrap();
    Files {
        state,
        memory: files.memory.try_clone().unwrap(),
    }
}

/// Why a monitor does not become what `files` say.
fn refusal(wanted: Wanted<'_>) -> String {
    let mut monitor = start_with(wanted).unwrap();
    let status = monitor.ends();
    let told = monitor.errors();
    assert_eq!(status.code(), Some(1), "{status:?}: {told}");
    assert!(!told.contains("panicked"), "{told}");
    told
}

#[test]
fn what_is_damaged_or_another_machines_is_refused_by_name() {
    let (files, other) = (Files::new(), Files::new());
    let Some((_first, _)) = save_one(&files) else {
        return;
    };
    let state = bytes_of(&files.state);
    let mut changed = state.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let newer = String::from_utf8(state.clone()).unwrap();
    let newer = newer.replacen("isopod-machine 1", "isopod-machine 2", 1);
    let cases: [(&[u8], &str); 5] = [
        (&[], "state file is not"),
        (&state[..20], "state file is not"),
        (&state[..state.len() - 1], "state file is damaged"),
        (&changed, "state file is damaged"),
        (newer.as_bytes(), "state file has version 2"),
    ];
    for (bytes, expected) in cases {
        let told = refusal(counting(None, Some(&with_state(&files, bytes))));
        assert!(told.contains(expected), "{told}");
    }

    let wanted = counting(None, Some(&files));
    let told = refusal(Wanted { cpus: 1, ..wanted });
    assert!(told.contains("its number of processors"), "{told}");
    let told = refusal(Wanted {
        memory_mib: 128,
        ..wanted
    });
    assert!(told.contains("memory"), "{told}");

    let Some((_second, _)) = save_one(&other) else {
        return;
    };
    let mixed = Files {
        state: files.state.try_clone().unwrap(),
        memory: other.memory.try_clone().unwrap(),
    };
    let told = refusal(counting(None, Some(&mixed)));
    assert!(told.contains("belongs to another state"), "{told}");
    for length in [0, 4096, 64 << 20] {
        other.memory.set_len(length).unwrap();
        let told = refusal(counting(None, Some(&other)));
        assert!(told.contains("memory file"), "{told}");
    }
}

/// Every number of a JSON document, by turns, made something else.
fn twist(value: &mut serde_json::Value, at: &mut i64, to: &serde_json::Value) {
    match value {
        serde_json::Value::Number(_) | serde_json::Value::String(_) => {
            if *at == 0 {
                *value = to.clone();
            }
            *at -= 1;
        }
        serde_json::Value::Array(items) => {
            items.iter_mut().for_each(|item| twist(item, at, to));
        }
        serde_json::Value::Object(fields) => {
            fields
                .iter_mut()
                .for_each(|(_, field)| twist(field, at, to));
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) => {}
    }
}

#[rstest]
#[case::all_bits(serde_json::json!(255))]
#[case::large(serde_json::json!(u64::MAX))]
#[case::nothing(serde_json::json!(0))]
#[case::no_number(serde_json::json!([]))]
fn a_forged_state_is_refused_or_lived_with(#[case] to: serde_json::Value) {
    const TRIES: i64 = 12;
    let files = Files::new();
    let Some((_monitor, _)) = save_one(&files) else {
        return;
    };
    let state = bytes_of(&files.state);
    let json = state.splitn(2, |byte| *byte == b'\n').nth(1).unwrap();
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    let count = {
        let mut left = i64::MAX;
        twist(&mut json.clone(), &mut left, &to);
        i64::MAX - left
    };
    for round in 0..TRIES {
        let mut forged = json.clone();
        // Spread over all parts; from another place for each case.
        let offset = to.to_string().len() as i64 * 7;
        twist(
            &mut forged,
            &mut ((count * round / TRIES + offset) % count),
            &to,
        );
        let body = serde_json::to_vec(&forged).unwrap();
        let digest: String = Sha256::digest(&body)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let mut bytes = format!("isopod-machine 1 {digest}\n").into_bytes();
        bytes.extend(body);
        let forged = with_state(&files, &bytes);
        let mut monitor = start_with(counting(None, Some(&forged))).unwrap();
        if ask!(monitor, boot).is_ok() {
            // The guest may do anything now, and be asked to end.
            let _ = ask!(monitor, shut_down);
        }
        let status = monitor.ends();
        let told = monitor.errors();
        assert_eq!(status.signal(), None, "{told}");
        assert!(matches!(status.code(), Some(0 | 1)), "{status:?}: {told}");
        assert!(!told.contains("panicked"), "{told}");
    }
}
