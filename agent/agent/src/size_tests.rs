use std::fs;

use isopod_protocol::agent::MemoryRange;
use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;

use super::*;

const BLOCK: u64 = 128 << 20;

/// A kernel with four processors, `online` of them working, and blocks of memory in these states. It
/// remembers what is written and does nothing about it.
fn kernel(online: &str, blocks: &[(u64, &str)], available_mib: u64) -> (TempDir, System) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for number in 1..4 {
        let cpu = root.join(format!("cpu/cpu{number}"));
        fs::create_dir_all(&cpu).unwrap();
        fs::write(cpu.join("online"), "untouched").unwrap();
    }
    fs::write(root.join("cpu/present"), "0-3\n").unwrap();
    fs::write(root.join("cpu/online"), online).unwrap();
    fs::create_dir(root.join("memory")).unwrap();
    fs::write(root.join("memory/block_size_bytes"), "8000000\n").unwrap();
    fs::write(root.join("memory/probe"), "untouched").unwrap();
    for (number, state) in blocks {
        let block = root.join(format!("memory/memory{number}"));
        fs::create_dir(&block).unwrap();
        fs::write(block.join("state"), format!("{state}\n")).unwrap();
    }
    let mut system = System::new(root);
    system.meminfo = root.join("meminfo");
    let meminfo = format!(
        "MemTotal: 9 kB\nMemAvailable:  {} kB\n",
        available_mib << 10
    );
    fs::write(&system.meminfo, meminfo).unwrap();
    (dir, system)
}

fn written(dir: &TempDir, path: &str) -> String {
    fs::read_to_string(dir.path().join(path)).unwrap()
}

/// Switches of processors 1 to 3: `-` is untouched.
fn switches(dir: &TempDir) -> String {
    let switch = |number| written(dir, &format!("cpu/cpu{number}/online"));
    let letters = (1..4).map(|number| match switch(number).as_str() {
        "untouched" => '-',
        // A write of one byte into a longer file.
        other => other.chars().next().unwrap(),
    });
    letters.collect()
}

fn range(start: u64, blocks: u64) -> MemoryRange {
    let mut range = MemoryRange::new();
    (range.start, range.bytes) = (start * BLOCK, blocks * BLOCK);
    range
}

fn request(cpus: u32, used: &[MemoryRange], unused: &[MemoryRange]) -> SetSizeRequest {
    let mut request = SetSizeRequest::new();
    request.cpus = cpus;
    request.used = used.to_vec();
    request.unused = unused.to_vec();
    request
}

#[rstest]
#[case::more("0", 3, "11-")]
#[case::all("0-1", 4, "-11")]
#[case::into_a_hole("0,2", 3, "1--")]
#[case::past_a_hole("0,3", 3, "110")]
#[case::the_same("0-2", 3, "---")]
#[case::fewer("0-3", 2, "-00")]
#[case::one("0,2-3", 1, "-00")]
#[case::by_number("0,2", 2, "10-")]
#[tokio::test]
async fn processors_are_switched(
    #[case] online: &str,
    #[case] wanted: u32,
    #[case] expected: &str,
) {
    let (dir, system) = kernel(online, &[], 1000);
    let response = Arc::new(system).set_size(request(wanted, &[], &[])).await;
    assert_eq!(response.unwrap().kept, "");
    assert_eq!(switches(&dir), expected);
}

#[rstest]
#[case("0", 1)]
#[case("0-2", 3)]
#[case("0,3", 4)]
#[tokio::test]
async fn how_far_they_reach_is_told(#[case] online: &str, #[case] expected: u32) {
    let (_dir, system) = kernel(online, &[], 1000);
    // This kernel leaves them as they are.
    let response = Arc::new(system).set_size(request(1, &[], &[])).await;
    assert_eq!(response.unwrap().cpus, expected);
}

#[rstest]
#[case(0)]
#[case(5)]
#[case(u32::MAX)]
#[tokio::test]
async fn processors_that_are_not_there_are_refused(#[case] wanted: u32) {
    let (dir, system) = kernel("0", &[], 1000);
    let error = Arc::new(system).set_size(request(wanted, &[], &[])).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&format!("cpus: {wanted} of 4")), "{error}");
    assert_eq!(switches(&dir), "---");
}

#[tokio::test]
async fn known_blocks_come_into_use() {
    let (dir, system) = kernel("0", &[(5, "offline"), (6, "online"), (7, "offline")], 0);
    let response = Arc::new(system).set_size(request(1, &[range(5, 2)], &[range(7, 1)]));
    let response = response.await.unwrap();
    assert_eq!((response.cpus, response.kept.as_str()), (1, ""));
    assert!(written(&dir, "memory/memory5/state").starts_with("online"));
    assert_eq!(written(&dir, "memory/memory7/state"), "offline\n");
    assert_eq!(written(&dir, "memory/probe"), "untouched");
    assert_eq!(response.added_bytes, BLOCK);
}

#[tokio::test]
async fn an_unknown_block_is_named_to_the_kernel() {
    let (dir, system) = kernel("0", &[], 0);
    let error = Arc::new(system).set_size(request(1, &[range(6, 1)], &[]));
    // This kernel does not find it all the same.
    let error = error.await.unwrap_err().to_string();
    assert!(error.contains("memory6/state"), "{error}");
    assert!(written(&dir, "memory/probe").starts_with("0x30000000"));
}

#[rstest]
#[case::two(128 + 32, "offline", "")]
#[case::none(128 + 31, "online", "only 159 MiB are free at block 6")]
#[tokio::test]
async fn only_what_is_free_leaves_use(
    #[case] available_mib: u64,
    #[case] state: &str,
    #[case] why: &str,
) {
    let (dir, system) = kernel("0-1", &[(5, "online"), (6, "online")], available_mib);
    let response = Arc::new(system).set_size(request(2, &[range(5, 1)], &[range(6, 1)]));
    let response = response.await.unwrap();
    assert_eq!(response.kept, why);
    assert_eq!(response.cpus, 2);
    assert!(written(&dir, "memory/memory6/state").starts_with(state));
    assert_eq!(written(&dir, "memory/memory5/state"), "online\n");
}

#[tokio::test]
async fn time_bounds_what_leaves_use() {
    let (dir, system) = kernel("0", &[(5, "online")], 1000);
    let why = system.leave_memory(5..6, Instant::now()).unwrap_err();
    assert!(why.contains("time is up"), "{why}");
    assert_eq!(written(&dir, "memory/memory5/state"), "online\n");
}

#[rstest]
#[case::not_from_a_block(1, BLOCK)]
#[case::not_to_a_block(BLOCK, 1)]
#[case::beyond_everything(u64::MAX - BLOCK + 1, BLOCK)]
#[tokio::test]
async fn parts_of_blocks_are_refused(#[case] start: u64, #[case] bytes: u64) {
    let (_dir, system) = kernel("0", &[], 1000);
    let mut part = MemoryRange::new();
    (part.start, part.bytes) = (start, bytes);
    let error = Arc::new(system).set_size(request(1, &[part], &[])).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("not whole blocks"), "{error}");
}

#[tokio::test]
async fn a_call_that_hangs_is_interrupted() {
    // Nothing will ever come, and poll(2) is not begun again after a signal.
    let poll = apart(Some(Duration::from_millis(50)), || {
        rustix::event::poll(&mut [], None)
    });
    assert_eq!(poll.await.unwrap(), Err(rustix::io::Errno::INTR));
}

#[rstest]
#[case("", Some(vec![]))]
#[case("0\n", Some(vec![0]))]
#[case("0-2,5\n", Some(vec![0, 1, 2, 5]))]
#[case("2-1", Some(vec![]))]
#[case("0-4294967295", None)]
#[case("x", None)]
#[case("0-", None)]
fn lists_of_numbers_are_read(#[case] text: &str, #[case] expected: Option<Vec<u32>>) {
    assert_eq!(processors::list(text), expected);
}

proptest! {
    #[test]
    fn any_text_is_a_list_or_not(text in "[0-9,\\-\n]{0,24}") {
        if let Some(numbers) = processors::list(&text) {
            prop_assert!(numbers.len() <= 12 * 1024);
        }
    }
}
