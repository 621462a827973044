//! Saved states, of registers, rings and devices, as who can write their file writes them: some fields
//! become any other value. A device refuses it, or lives with it and serves a driver that starts over.

#![no_main]

use std::{
    fs::File,
    os::unix::net::{UnixDatagram, UnixListener},
};

use arbitrary::Arbitrary;
use isopod_devices::{
    balloon::Balloon,
    blk::{Blk, BlkConfig, Disk},
    console::Console,
    mem::{AlwaysMapped, MIN_BLOCK, Mem, MemConfig},
    net::{Net, NetConfig},
    pmem::Pmem,
    rate::RateLimit,
    rng::Rng,
    vsock::{VsockConfig, VsockDevice},
};
use isopod_virtio::{
    Device, feature,
    testing::{Buffer, GuestRam, MmioDriver},
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const MEMORY: u64 = 8 << 20;
const SIZE: u16 = 8;
/// `DEVICE_NEEDS_RESET`.
const NEEDS_RESET: u32 = 64;

/// What a field becomes.
#[derive(Arbitrary, Debug)]
enum Forgery {
    Number(u64),
    Small(u8),
    Negative(i32),
    Bit(u8),
    Text(String),
    Yes(bool),
    Numbers(Vec<u16>),
    Twice,
    Nothing,
    Gone,
}

#[derive(Arbitrary, Debug)]
struct Input {
    device: u8,
    event_idx: bool,
    edits: Vec<(u16, Forgery)>,
    /// What lies where the rings are.
    content: Vec<u8>,
    doorbells: Vec<u8>,
}

fuzz_target!(|input: Input| {
    match input.device % 8 {
        0 => forge(&input, Rng::default),
        1 => forge(&input, || Pmem::new(1 << 32, 2 << 20).unwrap()),
        2 => forge(&input, Balloon::default),
        3 => forge(&input, || Console::new().unwrap()),
        4 => forge(&input, || {
            let file: File = tempfile::tempfile_in("/dev/shm").unwrap();
            file.set_len(64 << 10).unwrap();
            let mut blk = Blk::new(BlkConfig::default()).unwrap();
            blk.insert(Disk::new(file).unwrap()).unwrap();
            blk
        }),
        5 => forge(&input, || {
            let config = MemConfig {
                start: MEMORY - 2 * MIN_BLOCK,
                bytes: 2 * MIN_BLOCK,
                block: MIN_BLOCK,
            };
            Mem::new(config, AlwaysMapped).unwrap()
        }),
        6 => forge(&input, || {
            let config = NetConfig {
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                pairs: 1,
                receive: RateLimit::default(),
                send: RateLimit::default(),
            };
            let mut net = Net::new(config).unwrap();
            net.join(vec![UnixDatagram::pair().unwrap().0.into()])
                .unwrap();
            net
        }),
        _ => forge(&input, || {
            let dir = tempfile::tempdir_in("/dev/shm").unwrap();
            let config = VsockConfig {
                guest_cid: 3,
                connect_dir: dir.path().into(),
            };
            let listener = UnixListener::bind(dir.path().join("vsock.sock")).unwrap();
            VsockDevice::new(config, listener).unwrap()
        }),
    }
});

fn forge<D: Device>(input: &Input, device: impl Fn() -> D) {
    let ram = GuestRam::new(MEMORY);
    let memory = ram.memory.clone();
    let (mut driver, _control) = MmioDriver::attach_to(ram, device());
    let mut wanted = driver.device_features() & (feature::INDIRECT_DESC | feature::EVENT_IDX);
    if !input.event_idx {
        wanted &= !feature::EVENT_IDX;
    }
    let sizes = vec![SIZE; device().queue_sizes().len()];
    let mut queues = driver.start(wanted, &sizes);
    let at = driver.ram.allocate(4096);
    for queue in &mut queues {
        queue.offer(&[Buffer::Readable(at, 64), Buffer::Writable(at + 64, 64)]);
    }
    driver.transport.pause().unwrap();
    let mut state = serde_json::to_value(driver.transport.save().unwrap()).unwrap();
    for (field, forgery) in input.edits.iter().take(8) {
        let mut left = usize::from(*field) % count(&state).max(1);
        edit(&mut state, &mut left, forgery);
    }
    drop((driver, queues));

    let ram = GuestRam::over(memory, MEMORY);
    ram.write(0x1000, &input.content[..input.content.len().min(16 << 10)]);
    let (mut driver, _control) = MmioDriver::attach_to(ram, device());
    if let Ok(state) = serde_json::from_value(state)
        && driver.transport.restore(state).is_ok()
    {
        driver.transport.resume().unwrap();
        for queue in input.doorbells.iter().take(16) {
            driver.notify(u32::from(*queue) % 8);
        }
        driver.transport.metrics().unwrap();
        driver.transport.pause().unwrap();
        let again = driver.transport.save().unwrap();
        let again = serde_json::to_value(again).unwrap();
        serde_json::from_value::<isopod_virtio::transport::TransportState>(again).unwrap();
        driver.transport.resume().unwrap();
    }
    driver.ram.write(0, &[0; 64 << 10]);
    driver.start(0, &sizes);
    driver.transport.metrics().unwrap();
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

/// Fields, in all depths.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(count).sum(),
        Value::Array(values) => values.iter().map(count).sum(),
        _ => 0,
    }
}

/// Changes the field that is `left` fields away.
fn edit(value: &mut Value, left: &mut usize, forgery: &Forgery) -> bool {
    if *left == 0 {
        *value = forged(value, forgery);
        return true;
    }
    *left -= 1;
    match value {
        Value::Object(map) => map.values_mut().any(|value| edit(value, left, forgery)),
        Value::Array(values) => values.iter_mut().any(|value| edit(value, left, forgery)),
        _ => false,
    }
}

fn forged(value: &Value, forgery: &Forgery) -> Value {
    match forgery {
        Forgery::Number(number) => json!(number),
        Forgery::Small(number) => json!(number),
        Forgery::Negative(number) => json!(number),
        Forgery::Bit(bit) => json!(value.as_u64().unwrap_or(0) ^ 1 << (bit % 64)),
        Forgery::Text(text) => json!(text),
        Forgery::Yes(yes) => json!(yes),
        Forgery::Numbers(numbers) => json!(numbers),
        Forgery::Twice => json!([value, value]),
        Forgery::Nothing => Value::Null,
        Forgery::Gone => json!({}),
    }
}
