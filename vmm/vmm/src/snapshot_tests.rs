use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn line(name: &str, version: u32, rest: &str) -> Vec<u8> {
    format!("{name} {version} {rest}\n").into_bytes()
}

fn state_file(json: &str) -> Vec<u8> {
    let digest = hex(&Sha256::digest(json));
    [line(STATE, VERSION, &digest), json.into()].concat()
}

fn refusal(bytes: &[u8]) -> String {
    match decode(bytes) {
        Ok(_) => "taken".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[rstest]
#[case::empty(b"".to_vec(), "no first line")]
#[case::something_else(b"\x7fELF\n".to_vec(), "does not say isopod-machine")]
#[case::the_other_file(line(MEMORY, VERSION, "0"), "does not say isopod-machine")]
#[case::newer(line(STATE, VERSION + 1, "0"), "has version 2, this isopod knows 1")]
#[case::no_version(b"isopod-machine x y\n".to_vec(), "version cannot be read")]
#[case::more_words(line(STATE, VERSION, "a b"), "version cannot be read")]
#[case::changed([line(STATE, VERSION, "00"), b"{}".to_vec()].concat(), "damaged")]
#[case::no_json(state_file("{"), "EOF")]
#[case::no_memory(state_file(r#"{"machine": {}}"#), "missing field")]
#[case::too_much(state_file(r#"{"memory": "", "more": 1}"#), "unknown field")]
fn what_is_no_state_is_refused_by_name(#[case] bytes: Vec<u8>, #[case] told: &str) {
    let refusal = refusal(&bytes);
    assert!(refusal.contains(told), "{refusal}");
    assert!(refusal.contains("state file"), "{refusal}");
}

#[test]
fn a_memory_file_tells_its_id() {
    let with = |bytes: &[u8], before: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(before + TRAILER).unwrap();
        file.write_all_at(bytes, before).unwrap();
        memory_id(&file).map_err(|error| error.to_string())
    };
    assert_eq!(with(&line(MEMORY, VERSION, "ab"), 64 << 20).unwrap(), "ab");
    assert!(
        with(&line(MEMORY, 7, "ab"), 0)
            .unwrap_err()
            .contains("version 7")
    );
    assert!(
        with(b"", 64 << 20)
            .unwrap_err()
            .contains("memory file is not")
    );
    assert!(
        with(&[0xff; TRAILER as usize], 0)
            .unwrap_err()
            .contains("memory file is not")
    );
    let short = tempfile::tempfile().unwrap();
    assert!(memory_id(&short).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes: Vec<u8>, json: String) {
        let _ = decode(&bytes);
        let _ = decode(&state_file(&json));
        let _ = check_header("memory", MEMORY, &bytes);
    }
}
