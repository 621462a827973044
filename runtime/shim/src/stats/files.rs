//! Reading cgroup v2 files (kernel, Documentation/admin-guide/cgroup-v2.rst). They come from a guest:
//! any text is possible, and what makes no sense is 0.

/// Block devices in one answer: a guest cannot make it larger than a ttrpc message.
const MAX_DEVICES: usize = 1024;

/// The value of `name` in a flat keyed file.
pub fn key(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then_some(value)
    });
    value.map_or(0, number)
}

pub fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// No limit is the largest number.
pub fn limit(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => number(text),
    }
}

/// A line of `io.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceLine {
    pub major: u64,
    pub minor: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Lines like `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
pub fn device_lines(text: &str) -> impl Iterator<Item = DeviceLine> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut found = DeviceLine {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..DeviceLine::default()
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name {
                "rbytes" => found.read_bytes = number(value),
                "wbytes" => found.written_bytes = number(value),
                "rios" => found.reads = number(value),
                "wios" => found.writes = number(value),
                _ => {}
            }
        }
        Some(found)
    });
    lines.take(MAX_DEVICES)
}
